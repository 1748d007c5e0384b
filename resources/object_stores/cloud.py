"""The put of all clouds: look, send, look again, compare. Backends only speak their API.

What must always hold:

- Create-only: the request says "only if nothing is there" where the service understands it, and
  a look goes before and after where it does not.
- A receipt is given only for what the service itself states about the object: its size, our
  sha256 in its metadata, and a digest that the service computed from the bytes it holds. If it
  states no digest that can be computed here too (some encryptions), the object is read back.
- An upload in parts that was interrupted goes on with the parts whose size and md5, as the
  service lists them, are those of the file here. No note about it is kept on this side, so it
  goes on from any machine that has the archive.

How an unfinished upload is recognised: parts are about equally large and the last one is sent
first, alone. An archive ends with its manifest, so the last part's digest says for which archive
the upload was begun. Unfinished uploads that do not match are left alone (`abort_unfinished`).
"""

from __future__ import annotations

import builtins
import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from fuploader_dagster.errors import (
    DigestMismatch,
    FuploaderError,
    ObjectConflict,
    StoreRefused,
    StoreUnavailable,
)
from fuploader_dagster.resources.object_stores.answers import AlreadyThere, UploadGone
from fuploader_dagster.resources.object_stores.archive_bytes import (
    Algorithm,
    Digests,
    Part,
    View,
    cut,
)
from fuploader_dagster.resources.object_stores.keys import full_key, full_prefix, own_key
from fuploader_dagster.storage import (
    ArchiveFile,
    ObjectInfo,
    ObjectStore,
    Progress,
    StoredObject,
    UnfinishedUpload,
)

log = logging.getLogger(__name__)

READ_BACK_BYTES = 8 << 20
SHA256 = "sha256"
PART_BYTES = "part-bytes"
"""Metadata: how the archive was cut, so that anybody can compute a digest made of parts."""


@dataclass(frozen=True)
class Stated:
    """What a service says about an object."""

    size_bytes: int
    metadata: Mapping[str, str]
    algorithm: Algorithm | None
    """How the service's own digest is made; None: it states none that can be computed here."""
    digest: str = ""


@dataclass(frozen=True)
class ConfirmedPart:
    """A part that the service holds. `tag` is what completing asks for.

    `md5` is empty where the service does not state it (some encryptions).
    """

    number: int
    size_bytes: int
    md5: str
    tag: str


class Service(ABC):
    """One bucket in the service's own words: each method is one request (or one listing).

    Keys are full keys. Nothing is retried here. Errors as in `storage`, and for create-only
    requests `AlreadyThere`, for those about an upload `UploadGone`.
    """

    max_parts = 10_000
    sent_whole: Algorithm
    """The digest that this service states for what came in one request."""

    @abstractmethod
    def address(self, key: str) -> str: ...
    @abstractmethod
    def stat(self, key: str) -> Stated | None: ...
    @abstractmethod
    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None: ...
    @abstractmethod
    def begin(self, key: str, metadata: Mapping[str, str]) -> str: ...
    @abstractmethod
    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> ConfirmedPart:
        """The md5 in the result is what the service answered, not what was sent."""

    @abstractmethod
    def parts(self, key: str, upload_id: str) -> list[ConfirmedPart]: ...
    @abstractmethod
    def complete(self, key: str, upload_id: str, parts: Sequence[ConfirmedPart]) -> None: ...
    @abstractmethod
    def abort(self, key: str, upload_id: str) -> None: ...
    @abstractmethod
    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]: ...
    @abstractmethod
    def read(self, key: str, offset: int, length: int) -> bytes | None: ...
    @abstractmethod
    def list(self, prefix: str) -> Iterator[tuple[str, int]]: ...
    @abstractmethod
    def delete(self, key: str) -> None: ...


class CloudObjectStore(ObjectStore):
    """The contract, on top of any `Service`."""

    def __init__(
        self, service: Service, *, prefix: str, part_size_bytes: int, concurrency: int
    ) -> None:
        self._service = service
        self._prefix = prefix
        self._part_size_bytes = part_size_bytes
        self._concurrency = concurrency

    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        put = _Put(self, key, full_key(self._prefix, key), archive, progress)
        there = self._service.stat(put.full)
        if there is not None:
            return put.receipt(there, already_there=True)
        try:
            put.send(cut(archive.size_bytes, self._part_size_bytes, self._service.max_parts))
        except AlreadyThere:
            return self._put_that_lost_a_race(put)
        there = self._service.stat(put.full)
        if there is None:
            raise StoreUnavailable(
                f"{self.address(key)}: the service accepted it and does not have it",
                hint="local data was kept; it is tried again",
            )
        return put.receipt(there, already_there=False)

    def _put_that_lost_a_race(self, put: _Put) -> StoredObject:
        there = self._service.stat(put.full)
        if there is None:
            raise StoreUnavailable(f"{self.address(put.key)} was there a moment ago and is gone")
        return put.receipt(there, already_there=True)

    def head(self, key: str) -> ObjectInfo | None:
        there = self._service.stat(full_key(self._prefix, key))
        return (
            None if there is None else ObjectInfo(key, there.size_bytes, there.metadata.get(SHA256))
        )

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length <= 0:
            return b""
        data = self._service.read(full_key(self._prefix, key), offset, length)
        if data is None:
            raise StoreRefused(f"there is no object {self.address(key)}")
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for full, size in self._service.list(full_prefix(self._prefix, prefix)):
            yield ObjectInfo(own_key(self._prefix, full), size, None)

    def delete(self, key: str) -> None:
        self._service.delete(full_key(self._prefix, key))

    def check(self) -> None:
        """Begin an upload in parts and abort it: needs the rights of a put and stores nothing."""
        probe = full_key(self._prefix, "fuploader-check")
        self._service.stat(probe)
        self._service.abort(probe, self._service.begin(probe, {}))

    def address(self, key: str) -> str:
        return self._service.address(full_key(self._prefix, key))

    def unfinished(self, prefix: str = "") -> builtins.list[UnfinishedUpload]:
        return [
            UnfinishedUpload(own_key(self._prefix, each.key), each.upload_id, each.begun_at)
            for each in self._service.unfinished(full_prefix(self._prefix, prefix))
        ]

    def abort(self, upload: UnfinishedUpload) -> None:
        try:
            self._service.abort(full_key(self._prefix, upload.key), upload.upload_id)
        except UploadGone:
            log.debug("the unfinished upload of %s is gone already", upload.key)


class _Put:
    """One put of one archive: the steps, and the digests that they share."""

    def __init__(
        self,
        store: CloudObjectStore,
        key: str,
        full: str,
        archive: ArchiveFile,
        progress: Progress | None,
    ) -> None:
        self.key = key
        self.full = full
        self._store = store
        self._service = store._service
        self._archive = archive
        self._digests = Digests(archive)
        self._progress = progress or (lambda confirmed, total: None)
        self._part_bytes = archive.size_bytes

    def send(self, parts: Sequence[Part]) -> None:
        """Everything from here to the service. Raises `AlreadyThere` if somebody was quicker."""
        self._part_bytes = parts[0].size_bytes
        metadata = {**self._archive.metadata, SHA256: self._archive.sha256}
        if len(parts) == 1:
            self._digests.read_through(["md5", self._service.sent_whole])
            md5 = bytes.fromhex(self._digests.whole("md5", 0))
            with View(self._archive, parts[0]) as body:
                self._service.put(self.full, body, md5, metadata)
            self._progress(self._archive.size_bytes, self._archive.size_bytes)
            return
        metadata[PART_BYTES] = str(self._part_bytes)
        try:
            self._send_parts(parts, metadata)
        except UploadGone as gone:
            raise StoreUnavailable(
                f"{self._store.address(self.key)}: the unfinished upload was aborted by somebody",
                hint="it is begun anew",
            ) from gone

    def _send_parts(self, parts: Sequence[Part], metadata: Mapping[str, str]) -> None:
        upload_id, confirmed = self._begun_earlier(parts) or self._begin(parts[-1], metadata)
        done = sum(part.size_bytes for part in confirmed.values())
        self._progress(done, self._archive.size_bytes)
        reader = ThreadPoolExecutor(1, "read-through")
        sender = ThreadPoolExecutor(self._store._concurrency, "send-part")
        try:
            read_through = reader.submit(self._digests.read_through, [self._service.sent_whole])
            missing = [part for part in parts if part.number not in confirmed]
            sending = [sender.submit(self._send_part, upload_id, part) for part in missing]
            for future in as_completed(sending):
                part = future.result()
                confirmed[part.number] = part
                done += part.size_bytes
                self._progress(done, self._archive.size_bytes)
            read_through.result()
        finally:  # the first failure ends the attempt; what is confirmed stays at the service
            sender.shutdown(cancel_futures=True)
            reader.shutdown(cancel_futures=True)
        ordered = [confirmed[part.number] for part in parts]
        if self._service.stat(self.full) is not None:  # not every service checks when completing
            raise AlreadyThere(self.full)
        self._service.complete(self.full, upload_id, ordered)

    def _begun_earlier(self, parts: Sequence[Part]) -> tuple[str, dict[int, ConfirmedPart]] | None:
        """The unfinished upload of this very archive, with the parts that need not be sent."""
        for upload in self._service.unfinished(self.full):
            if upload.key != self.full:
                continue
            try:
                held = {
                    part.number: part for part in self._service.parts(upload.key, upload.upload_id)
                }
            except UploadGone:
                continue
            if not self._is_held(parts[-1], held):
                continue
            confirmed = {
                part.number: held[part.number] for part in parts if self._is_held(part, held)
            }
            log.info(
                "%s: going on with an unfinished upload, %d of %d parts are there",
                self._store.address(self.key),
                len(confirmed),
                len(parts),
            )
            return upload.upload_id, confirmed
        return None

    def _is_held(self, part: Part, held: Mapping[int, ConfirmedPart]) -> bool:
        there = held.get(part.number)
        return (
            there is not None
            and there.size_bytes == part.size_bytes
            and there.md5 == self._digests.md5_of(part).hex()
        )

    def _begin(
        self, last: Part, metadata: Mapping[str, str]
    ) -> tuple[str, dict[int, ConfirmedPart]]:
        upload_id = self._service.begin(self.full, metadata)
        try:
            return upload_id, {last.number: self._send_part(upload_id, last)}
        except FuploaderError:
            # Without its last part nobody could go on with it: do not leave it behind.
            try:
                self._service.abort(self.full, upload_id)
            except (FuploaderError, UploadGone) as error:
                log.warning("an empty unfinished upload of %s stays behind: %s", self.key, error)
            raise

    def _send_part(self, upload_id: str, part: Part) -> ConfirmedPart:
        md5 = self._digests.md5_of(part)
        with View(self._archive, part) as body:
            confirmed = self._service.put_part(self.full, upload_id, part, body, md5)
        if confirmed.md5 not in ("", md5.hex()):
            raise StoreUnavailable(
                f"part {part.number} of {self._store.address(self.key)}: the service confirmed "
                f"md5 {confirmed.md5}, {md5.hex()} was sent",
                hint="the part is sent again",
            )
        return confirmed

    def _states_our_digest(self, there: Stated) -> bool:
        if there.size_bytes != self._archive.size_bytes:
            return False
        algorithm, part_bytes = self._comparable(there)
        return algorithm is not None and there.digest == self._digests.whole(algorithm, part_bytes)

    def receipt(self, there: Stated, *, already_there: bool) -> StoredObject:
        """Compare everything that the service states with what is here.

        Raises `ObjectConflict` for somebody else's archive, and `DigestMismatch` for what
        claims to be ours and is not.
        """
        archive, kept = self._archive, there.metadata.get(SHA256)
        if kept not in (None, archive.sha256):
            raise self._conflict(there, f"sha256 {kept}")
        if kept is None and not (already_there and self._states_our_digest(there)):
            if already_there:
                raise self._conflict(there, "another digest")
            raise self._mismatch("no sha256 in the metadata", f"sha256 {archive.sha256}")
        ours, stated = f"{archive.size_bytes} bytes", f"{there.size_bytes} bytes"
        if there.size_bytes == archive.size_bytes:
            algorithm, part_bytes = self._comparable(there)
            if algorithm is None:
                ours, stated = f"sha256 {archive.sha256}", f"sha256 {self._read_back()}"
            else:
                ours = f"{algorithm} {self._digests.whole(algorithm, part_bytes)}"
                stated = f"{algorithm} {there.digest}"
        if ours != stated:
            raise self._mismatch(stated, ours)
        return StoredObject(
            self._store.address(self.key),
            self.key,
            archive.size_bytes,
            archive.sha256,
            already_there=already_there,
        )

    def _conflict(self, there: Stated, digest: str) -> ObjectConflict:
        return ObjectConflict(
            f"{self._store.address(self.key)} has {there.size_bytes} bytes, {digest}; "
            f"{self._archive.path} has {self._archive.size_bytes} bytes, "
            f"sha256 {self._archive.sha256}",
            hint="nothing was changed; find out who wrote it, or give the archive another key",
        )

    def _mismatch(self, stated: str, ours: str) -> DigestMismatch:
        return DigestMismatch(
            f"{self._store.address(self.key)}: the service states {stated}; "
            f"{self._archive.path} has {ours}",
            hint="local data was kept; look at the object, remove it, and upload again",
        )

    def _comparable(self, there: Stated) -> tuple[Algorithm | None, int]:
        """Which digest to compare, and the size of the parts that it is made of."""
        if there.algorithm != "md5-of-parts":
            return there.algorithm, 0
        part_bytes = int(there.metadata.get(PART_BYTES) or self._part_bytes)
        count = int(there.digest.rpartition("-")[2])
        if part_bytes > 0 and -(-there.size_bytes // part_bytes) == count:
            return there.algorithm, part_bytes
        return None, 0  # cut in a way that is not known: read it back

    def _read_back(self) -> str:
        digest = hashlib.sha256()
        for offset in range(0, self._archive.size_bytes, READ_BACK_BYTES):
            digest.update(self._service.read(self.full, offset, READ_BACK_BYTES) or b"")
        return digest.hexdigest()
