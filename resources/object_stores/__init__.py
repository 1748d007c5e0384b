"""Where archives go: one file per backend behind `fuploader_dagster.storage.ObjectStore`."""

from fuploader_dagster.resources.object_stores.cos import COS
from fuploader_dagster.resources.object_stores.local import Local
from fuploader_dagster.resources.object_stores.mirror import Mirror
from fuploader_dagster.resources.object_stores.oss import OSS
from fuploader_dagster.resources.object_stores.resource import ObjectStoreResource
from fuploader_dagster.resources.object_stores.s3 import S3

__all__ = ["COS", "OSS", "S3", "Local", "Mirror", "ObjectStoreResource"]
