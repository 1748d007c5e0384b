"""Where archives go: one file per backend behind the contract `ObjectStore`.

The names below are Dagster resources, loaded when they are first asked for; the settings of each
backend, which need no Dagster, are in its own module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuploader_dagster.resources.object_stores.resource import COS as COS
    from fuploader_dagster.resources.object_stores.resource import OSS as OSS
    from fuploader_dagster.resources.object_stores.resource import S3 as S3
    from fuploader_dagster.resources.object_stores.resource import Local as Local
    from fuploader_dagster.resources.object_stores.resource import Mirror as Mirror
    from fuploader_dagster.resources.object_stores.resource import (
        ObjectStoreResource as ObjectStoreResource,
    )

__all__ = ["COS", "OSS", "S3", "Local", "Mirror", "ObjectStoreResource"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.resource"), name)
