"""Object stores as Dagster resources: the settings of each backend, shown and resolved by Dagster.

A host project adds a backend by subclassing `ObjectStoreResource` and implementing `connect` and
`describe`; `settings` says what must hold for it.
"""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster import EnvVar

from fuploader_dagster.resources.object_stores import settings
from fuploader_dagster.resources.object_stores.cos import COSSettings
from fuploader_dagster.resources.object_stores.local import LocalSettings
from fuploader_dagster.resources.object_stores.mirror import MirrorSettings
from fuploader_dagster.resources.object_stores.oss import OSSSettings
from fuploader_dagster.resources.object_stores.s3 import S3Settings


class ObjectStoreResource(dg.ConfigurableResource[Any], settings.ObjectStoreSettings):
    """The settings of an object store as a Dagster resource, usable without Dagster too."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{name: _as_dagster(value) for name, value in values.items()})


class S3(ObjectStoreResource, S3Settings):
    """A bucket of Amazon S3 or of a compatible service."""


class COS(ObjectStoreResource, COSSettings):
    """A bucket of Tencent COS."""


class OSS(ObjectStoreResource, OSSSettings):
    """A bucket of Alibaba OSS."""


class Local(ObjectStoreResource, LocalSettings):
    """A folder as an object store."""


class Mirror(ObjectStoreResource, MirrorSettings):
    """Two object stores, of different providers if you like. Each archive goes to both."""

    first: ObjectStoreResource
    second: ObjectStoreResource

    def __init__(self, **values: Any) -> None:
        loaded = {name: self.loaded(name, value) for name, value in values.items()}
        super().__init__(**{name: as_resource(value) for name, value in loaded.items()})


_RESOURCES: dict[type, type[ObjectStoreResource]] = {
    S3Settings: S3,
    COSSettings: COS,
    OSSSettings: OSS,
    LocalSettings: Local,
    MirrorSettings: Mirror,
}


def as_resource(store: Any) -> Any:
    """The Dagster resource with these settings. A resource, or a host's own store, is returned."""
    resource = _RESOURCES.get(type(store))
    if resource is None:
        return store
    return resource(**{name: getattr(store, name) for name in store.model_fields_set})


def _as_dagster(value: Any) -> Any:
    """A variable from YAML, or of our settings, becomes Dagster's."""
    name = settings.variable_name(settings.as_variable(value))
    return value if name is None else EnvVar(name)
