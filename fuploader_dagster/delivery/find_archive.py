"""Which archive a person means, and where its bytes come from.

An archive is named by

- a path, or `file://` and a path;
- an address in a store: `s3://bucket/key`, `cos://...`, `oss://...`, as receipts and the UI show
  them. It is opened with the settings of the pipeline whose store (today's or a former one) holds
  it. An `s3://` address in none of them is opened with the credentials that boto3 finds by itself
  (environment, profile, instance);
- a partition key: found by its receipt; without one, by the archive that is still on this disk;
  else, for another node's partition, in the store (`other_nodes`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fuploader_dagster.archives.ranges import LocalFile, RangeSource, StoredArchive
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.contracts import object_store
from fuploader_dagster.delivery.other_nodes import how_to_find, key_of_another_node
from fuploader_dagster.delivery.pack import find_packed
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import ConfigError, StoreRefused
from fuploader_dagster.settings.loading import load_backend
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, find_receipt

_PROBE = "x"


@dataclass(frozen=True)
class FoundArchive:
    """An archive that exists."""

    source: RangeSource
    sha256: str | None
    """Of the whole archive, by its receipt or by the store; None for an unknown file."""
    size_bytes: int | None = None
    """By its receipt."""


def is_partition(target: str) -> bool:
    """Whether the target is a partition key (and there is no file of that name here)."""
    return PartitionKey.parse(target) is not None and not Path(target).exists()


def find_archive(target: str, pipelines: Mapping[str, Pipeline]) -> FoundArchive:
    """The archive that the target names. Errors as in `ArchiveFinder.find`."""
    return ArchiveFinder(pipelines).find(target)


def open_partition(pipeline: Pipeline, partition: str) -> Archive:
    """Open the archive of a partition, for assets that depend on `uploaded_archive`.

    Use it as a context manager. Errors as in `ArchiveFinder.find`, and those of opening.
    """
    return ArchiveFinder({pipeline.name: pipeline}).open(partition)


class ArchiveFinder:
    """Finds archives of these pipelines; opens each of their stores once. Thread-safe."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self._pipelines = pipelines
        self._lock = threading.Lock()
        self._opened: dict[int, object_store.ObjectStore] = {}

    def find(self, target: str) -> FoundArchive:
        """The archive that the target names.

        Raises `StoreRefused` if it does not exist, `ConfigError` if no store has such addresses.
        """
        if "://" in target:
            return self._at_address(target)
        if is_partition(target):
            return self._of_partition(target)
        return FoundArchive(LocalFile(Path(target)), None)

    def open(self, target: str) -> Archive:
        """The same, opened. Raises what opening raises."""
        return Archive.open(self.find(target).source)

    def _at_address(self, address: str) -> FoundArchive:
        scheme, _, rest = address.partition("://")
        if scheme == "file":
            return FoundArchive(LocalFile(Path(unquote(urlsplit(address).path))), None)
        unusable: list[str] = []
        for store in self._stores(scheme, unusable):
            base = store.address(_PROBE).removesuffix(_PROBE)
            if address.startswith(base) and address != base:
                return _stored(store, address.removeprefix(base))
        bucket, _, key = rest.partition("/")
        if scheme == "s3" and bucket and key:
            public = load_backend("store", {"kind": "s3", "bucket": bucket}, address)
            return _stored(public.open(), key)
        raise ConfigError(
            f"no pipeline stores into {scheme}://{bucket}"
            + "".join(f"; {reason}" for reason in unusable),
            hint="give the configuration with --config; without one only s3://bucket/key can be "
            "read",
        )

    def _stores(self, scheme: str, unusable: list[str]) -> Iterator[object_store.ObjectStore]:
        for name, pipeline in self._pipelines.items():
            settings = (pipeline.store, *pipeline.former_stores)
            for setting in chain.from_iterable(map(_parts, settings)):
                described = setting.describe()
                if "://" in described and not described.startswith(f"{scheme}://"):
                    continue  # a client library that is not needed may be missing
                try:
                    yield self._open(setting)
                except ConfigError as error:
                    unusable.append(f"{name}: {error}")

    def _open(self, setting: object_store.OpensObjectStore) -> object_store.ObjectStore:
        with self._lock:
            if id(setting) not in self._opened:
                self._opened[id(setting)] = setting.open()
            return self._opened[id(setting)]

    def _of_partition(self, partition: str) -> FoundArchive:
        for pipeline in self._pipelines.values():
            receipt = find_receipt(pipeline.layout, partition)
            if receipt is not None:
                return self.of_receipt(receipt, pipeline)
        for pipeline in self._pipelines.values():
            packed = find_packed(pipeline.layout, partition)
            if packed is not None:
                file = LocalFile(pipeline.layout.archives / packed.archive)
                return FoundArchive(file, packed.sha256, packed.size_bytes)
        parsed = PartitionKey.parse(partition)
        assert parsed is not None  # noqa: S101 - `is_partition` has seen to it
        for pipeline in self._pipelines.values():
            store = self._open(pipeline.store)
            key = key_of_another_node(parsed, pipeline, store)
            if key is not None:
                return _stored(store, key)
        hints = filter(None, map(how_to_find, self._pipelines.values()))
        raise StoreRefused(
            f"no archive of partition {partition} is known to {', '.join(self._pipelines)}, nor "
            f"where their keys say",
            hint="; ".join(["a slot that is only sealed has no archive yet", *hints]),
        )

    def of_receipt(self, receipt: Receipt, pipeline: Pipeline) -> FoundArchive:
        """The archive of a receipt, also if the pipeline had another store then."""
        store = self._open(pipeline.store)
        if store.address(receipt.key) == receipt.address:
            source: RangeSource = StoredArchive(store, receipt.key)
        else:
            source = self._at_address(receipt.address).source
        return FoundArchive(source, receipt.sha256, receipt.size_bytes)


def _parts(setting: object_store.OpensObjectStore) -> Iterator[object_store.OpensObjectStore]:
    if isinstance(setting, object_store.OpensSeveralStores):
        for one in setting.each():
            yield from _parts(one)
    else:
        yield setting


def _stored(store: object_store.ObjectStore, key: str) -> FoundArchive:
    source = StoredArchive(store, key)
    return FoundArchive(source, source.sha256)
