"""Where archives go: one file per backend behind `fuploader_dagster.storage.ObjectStore`."""

from fuploader_dagster.resources.object_stores.local import Local
from fuploader_dagster.resources.object_stores.resource import ObjectStoreResource
from fuploader_dagster.resources.object_stores.s3 import S3

__all__ = ["S3", "Local", "ObjectStoreResource"]
