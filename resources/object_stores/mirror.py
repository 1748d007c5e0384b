"""Mirror: two stores, both of which must have an archive before it counts as stored.

What must always hold:

- `put` returns a receipt only when both stores have confirmed. What one has confirmed stays there;
  the next attempt finds it and sends to the other only.
- `head` and `list` report what *both* have: an archive that one of them lacks is not stored yet, so
  the recovery schedule requests it again.
- Reading uses the first store and falls back to the second.

Each store has its own retries, so that a slow one does not make the other repeat anything. For more
than two stores, mirror a mirror.
"""

from __future__ import annotations

import builtins
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.object_store import (
    ArchiveFile,
    ObjectInfo,
    ObjectStore,
    Progress,
    Retry,
    StoredObject,
    UnfinishedUpload,
)
from fuploader_dagster.errors import DigestMismatch, FuploaderError, StoreRefused, TemporaryError
from fuploader_dagster.resources.object_stores.settings import ObjectStoreSettings
from fuploader_dagster.settings.loading import load_backend

log = logging.getLogger(__name__)

T = TypeVar("T")


class MirrorSettings(ObjectStoreSettings):
    """Two object stores, of different providers if you like. Each archive goes to both."""

    first: ObjectStoreSettings
    """The store that archives are read from."""
    second: ObjectStoreSettings
    """The store to read from if the first fails."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{name: self.loaded(name, value) for name, value in values.items()})

    @staticmethod
    def loaded(name: str, value: Any) -> Any:
        """`{kind: s3, bucket: ...}` becomes the settings of that kind."""
        return load_backend("store", value, f"Mirror.{name}") if isinstance(value, dict) else value

    def connect(self) -> ObjectStore:
        return MirroredObjectStore([self.first.connect(), self.second.connect()])

    def open(self) -> ObjectStore:
        return MirroredObjectStore([self.first.open(), self.second.open()])

    def each(self) -> Sequence[ObjectStoreSettings]:
        return (self.first, self.second)

    def examine(self) -> Iterator[Diagnosis]:
        yield from self.first.examine()
        yield from self.second.examine()

    def describe(self) -> str:
        return f"{self.first.describe()}, mirrored to {self.second.describe()}"


class MirroredObjectStore(ObjectStore):
    """See the module's docstring."""

    def __init__(self, stores: Sequence[ObjectStore]) -> None:
        self._stores = tuple(stores)

    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        reports = _Slowest(progress, len(self._stores))
        receipts = self._all(
            lambda number, store: store.put(key, archive, reports.of(number)),
        )
        return StoredObject(
            self.address(key),
            key,
            archive.size_bytes,
            archive.sha256,
            already_there=all(receipt.already_there for receipt in receipts),
        )

    def head(self, key: str) -> ObjectInfo | None:
        found = self._all(lambda _, store: store.head(key))
        first = found[0]
        if first is None or None in found:
            return None
        if any(each != first for each in found):
            raise DigestMismatch(
                f"{self.address(key)} differ: {' and '.join(str(each) for each in found)}",
                hint="look at both objects and remove the wrong one; it will be uploaded again",
            )
        return first

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        errors: builtins.list[FuploaderError] = []
        for store in self._stores:
            try:
                return store.get_range(key, offset, length)
            except (TemporaryError, StoreRefused) as error:
                log.warning("one mirror cannot be read, trying the next: %s", error)
                errors.append(error)
        raise errors[0]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        first, *others = self._stores
        keys = [{each.key for each in store.list(prefix)} for store in others]
        return (each for each in first.list(prefix) if all(each.key in found for found in keys))

    def delete(self, key: str) -> None:
        self._all(lambda _, store: store.delete(key))

    def erase(self, key: str) -> None:
        self._all(lambda _, store: store.erase(key))

    def listen(self, ear: Callable[[Retry], None]) -> None:
        for store in self._stores:
            store.listen(ear)

    def check(self) -> None:
        self._all(lambda _, store: store.check())

    def address(self, key: str) -> str:
        return " and ".join(store.address(key) for store in self._stores)

    def presigned(self, key: str, seconds: int) -> str | None:
        found = (store.presigned(key, seconds) for store in self._stores)
        return next((address for address in found if address is not None), None)

    def clock(self) -> datetime | None:
        return next((time for store in self._stores if (time := store.clock())), None)

    def unfinished(self, prefix: str = "") -> builtins.list[UnfinishedUpload]:
        return [
            replace(upload, upload_id=f"{number}:{upload.upload_id}")
            for number, store in enumerate(self._stores)
            for upload in store.unfinished(prefix)
        ]

    def abort(self, upload: UnfinishedUpload) -> None:
        number, _, upload_id = upload.upload_id.partition(":")
        self._stores[int(number)].abort(replace(upload, upload_id=upload_id))

    def _all(self, action: Callable[[int, ObjectStore], T]) -> builtins.list[T]:
        """Do it with all stores at once. Wait for all; then raise the first error."""
        with ThreadPoolExecutor(len(self._stores), "mirror") as pool:
            futures = [
                pool.submit(copy_context().run, action, number, store)
                for number, store in enumerate(self._stores)
            ]
        failed = [future.exception() for future in futures if future.exception() is not None]
        for error in failed[1:]:
            log.warning("the other mirror failed as well: %s", error)
        return [future.result() for future in futures]


class _Slowest:
    """Passes on the progress that all stores have made."""

    def __init__(self, progress: Progress | None, count: int) -> None:
        self._progress = progress
        self._confirmed = [0] * count
        self._lock = threading.Lock()

    def of(self, number: int) -> Progress:
        def report(confirmed: int, total: int) -> None:
            with self._lock:  # otherwise a smaller figure could come after a larger one
                self._confirmed[number] = confirmed
                if self._progress is not None:
                    self._progress(min(self._confirmed), total)

        return report
