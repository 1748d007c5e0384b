"""The verified put of all clouds: look, send, look again, compare.

What must always hold:

- Create-only: the request says "only if nothing is there" where the service understands that;
  where it does not, we look before and after.
- A receipt needs what the service itself states about the object: its size, our sha256 in its
  metadata, and a digest that the service computed from the bytes it holds. If it states no digest
  that we can compute too (some encryptions), the object is read back.
- An interrupted upload in parts is resumed with those parts whose size and md5, as the service
  lists them, are those of the local file. We keep no note about it, so any machine that has the
  archive can resume it. Where the service states no md5 of parts (those encryptions again), only
  the process that sent them can (`SentParts`).

How an unfinished upload is recognised: parts are about equally large and the last one is sent
first. An archive ends with its manifest, so the last part's digest shows which archive the upload
is for. Unfinished uploads that do not match are left alone; the recovery schedule aborts those of
archives that are stored.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import copy_context

from fuploader_dagster import errors
from fuploader_dagster.contracts.object_store import ArchiveFile, Progress, StoredObject
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.resources.object_stores.answers import AlreadyThere, Refusal, UploadGone
from fuploader_dagster.resources.object_stores.archive_bytes import (
    Algorithm,
    Digests,
    Part,
    View,
    conflict,
    cut,
)
from fuploader_dagster.resources.object_stores.service import ConfirmedPart, Service, Stated

log = logging.getLogger(__name__)

READ_BACK_BYTES = 8 << 20
FEWEST_PARTS = 1_000
"""Amazon accepts 10,000 parts, some compatible services only this many (Swift by default)."""
SHA256 = "sha256"
PART_BYTES = "part-bytes"
"""Metadata: the size of the parts, so that anybody can compute a digest made of parts."""


class SentParts:
    """The tags that a service returned for parts, if they are not digests. Thread-safe."""

    def __init__(self) -> None:
        self._tags: dict[str, dict[tuple[int, bytes], str]] = {}

    def note(self, upload_id: str, part: ConfirmedPart, md5: bytes) -> None:
        self._tags.setdefault(upload_id, {})[part.number, md5] = part.tag

    def is_ours(self, upload_id: str, part: ConfirmedPart, md5: bytes) -> bool:
        """Whether the part that the service lists is what was sent with this md5."""
        tag = self._tags.get(upload_id, {}).get((part.number, md5))
        return bool(tag) and tag == part.tag

    def forget(self, upload_id: str) -> None:
        self._tags.pop(upload_id, None)


Confirmed = dict[int, ConfirmedPart]
"""The parts of an upload that the service holds, by their numbers."""


class VerifiedPut:
    """One put of one archive: the steps, and the digests that they share."""

    def __init__(
        self,
        service: Service,
        key: str,
        full: str,
        archive: ArchiveFile,
        *,
        progress: Progress | None,
        sent: SentParts,
    ) -> None:
        self._service = service
        self._sent = sent
        self._key = key
        self._full = full
        self._address = service.address(full)
        self._archive = archive
        self._digests = Digests(archive)
        self._progress = progress or (lambda confirmed, total: None)
        self._parts: Sequence[Part] = ()
        self._part_bytes = archive.size_bytes
        self._concurrency = 1

    def run(self, part_size_bytes: int, concurrency: int) -> StoredObject:
        """The whole put."""
        self._concurrency = concurrency
        self._parts = cut(self._archive.size_bytes, part_size_bytes, self._service.max_parts)
        there = self._service.stat(self._full)
        if there is not None:
            return self._receipt(there, already_there=True)
        try:
            self._send()
        except AlreadyThere:
            return self._receipt(self._stated_now(), already_there=True)
        return self._receipt(self._stated_now(), already_there=False)

    def rehearse(self) -> None:
        """All that a put in parts does, with one part, except completing it; nothing is left."""
        part = Part(1, 0, self._archive.size_bytes)
        self._service.stat(self._full)
        upload_id = self._begin({})
        try:
            self._tagged([self._send_part(upload_id, part)], upload_id)
        finally:
            self._give_up(upload_id)

    def _stated_now(self) -> Stated:
        there = self._service.stat(self._full)
        if there is None:
            raise errors.StoreUnavailable(
                f"{self._address}: the service says it stored the object, yet does not have it",
                hint="local data was kept; it will be retried; if this goes on, look for a proxy "
                "or a login page that answers in place of the service",
            )
        return there

    def _send(self) -> None:
        """Send the archive. Raises `AlreadyThere` if another process was quicker."""
        self._part_bytes = self._parts[0].size_bytes
        metadata = {**self._archive.metadata, SHA256: self._archive.sha256}
        if len(self._parts) == 1:
            self._digests.read_through(["md5", self._service.sent_whole])
            md5 = bytes.fromhex(self._digests.whole("md5", 0))
            with View(self._archive, self._parts[0]) as body:
                self._service.put(self._full, body, md5, metadata)
            self._progress(self._archive.size_bytes, self._archive.size_bytes)
            return
        metadata[PART_BYTES] = str(self._part_bytes)
        try:
            with self._reading_through() as read_through:
                upload_id, confirmed = self._begun_earlier() or (self._begin(metadata), {})
                self._send_and_complete(upload_id, confirmed, read_through)
        except UploadGone as gone:
            raise errors.StoreUnavailable(
                f"{self._address}: somebody aborted the unfinished upload",
                hint="it will be started again",
            ) from gone

    @contextmanager
    def _reading_through(self) -> Iterator[Future[None]]:
        """Compare the whole file with its sha256 in the background; stop with the attempt."""
        abandoned = threading.Event()
        with ThreadPoolExecutor(1, "read-through") as reader:
            try:
                yield reader.submit(
                    self._digests.read_through, [self._service.sent_in_parts], abandoned
                )
            finally:
                abandoned.set()

    def _send_and_complete(
        self, upload_id: str, confirmed: Confirmed, read_through: Future[None]
    ) -> None:
        if confirmed:
            self._report(confirmed)
        try:
            self._send_missing(upload_id, confirmed)
            read_through.result()
        except BaseException:
            if self._parts[-1].number not in confirmed:  # without it no upload is recognised
                self._give_up(upload_id)
            raise
        try:
            ordered = self._tagged([confirmed[part.number] for part in self._parts], upload_id)
            if self._service.stat(self._full) is not None:  # not every service checks by itself
                raise AlreadyThere(self._full)
            self._service.complete(self._full, upload_id, ordered)
            self._sent.forget(upload_id)
        except AlreadyThere:
            self._give_up(upload_id)
            raise

    def _tagged(self, parts: Sequence[ConfirmedPart], upload_id: str) -> Sequence[ConfirmedPart]:
        """The same parts with the tags that completing needs; missing ones are looked up."""
        if all(part.tag for part in parts):
            return parts
        held = {part.number: part for part in self._service.parts(self._full, upload_id)}
        tagged = [held.get(part.number, part) for part in parts]
        if all(part.tag for part in tagged):
            return tagged
        self._give_up(upload_id)
        raise errors.StoreRefused(
            f"{self._address}: the service gives no ETag for the parts of an upload",
            hint="without ETags an upload in parts cannot be completed: look for a proxy in "
            "between that drops headers, or set part_size_bytes above the size of your archives, "
            "so that each is sent in one request",
        )

    def _begun_earlier(self) -> tuple[str, Confirmed] | None:
        """The unfinished upload of this archive, with the parts that need not be sent again."""
        try:
            uploads = [
                upload
                for upload in self._service.unfinished(self._full)
                if upload.key == self._full
            ]
        except errors.StoreRefused as error:  # unsupported, or not allowed: we can do without
            log.warning("sending all parts, because unfinished uploads cannot be listed: %s", error)
            return None
        for upload in uploads:
            try:
                held = {
                    part.number: part for part in self._service.parts(upload.key, upload.upload_id)
                }
            except UploadGone:
                continue
            confirmed = {
                part.number: held[part.number]
                for part in self._parts
                if self._is_held(part, held.get(part.number), upload.upload_id)
            }
            if self._parts[-1].number not in confirmed:
                continue
            log.info(
                "%s: resuming an unfinished upload, %d of %d parts are stored already",
                self._address,
                len(confirmed),
                len(self._parts),
            )
            return upload.upload_id, confirmed
        return None

    def _is_held(self, part: Part, there: ConfirmedPart | None, upload_id: str) -> bool:
        if there is None or there.size_bytes != part.size_bytes:
            return False
        md5 = self._digests.md5_of(part)
        return there.md5 == md5.hex() or self._sent.is_ours(upload_id, there, md5)

    def _begin(self, metadata: Mapping[str, str]) -> str:
        upload_id = self._service.begin(self._full, metadata)
        reached(CrashPoint.UPLOAD_BEGUN)
        return upload_id

    def _send_missing(self, upload_id: str, confirmed: Confirmed) -> None:
        """Send what is not confirmed yet, the last part first; adds to `confirmed`."""
        *first, last = self._parts
        missing = [part for part in (last, *first) if part.number not in confirmed]
        sender = ThreadPoolExecutor(self._concurrency, "send-part")
        try:
            sending = [
                sender.submit(copy_context().run, self._send_part, upload_id, part)
                for part in missing
            ]
            for future in as_completed(sending):
                part = future.result()
                confirmed[part.number] = part
                reached(CrashPoint.PART_STORED)
                self._report(confirmed)
        finally:  # the first failure ends the attempt; the service keeps what it has confirmed
            sender.shutdown(cancel_futures=True)
            for future in sending:
                if not future.cancelled() and future.exception() is None:
                    confirmed[future.result().number] = future.result()

    def _report(self, confirmed: Mapping[int, ConfirmedPart]) -> None:
        done = sum(part.size_bytes for part in confirmed.values())
        self._progress(done, self._archive.size_bytes)

    def _give_up(self, upload_id: str) -> None:
        """Abort an upload that nobody will resume; if that fails, the recovery schedule does it."""
        self._sent.forget(upload_id)
        try:
            self._service.abort(self._full, upload_id)
        except UploadGone:
            log.debug("the unfinished upload of %s is gone already", self._key)
        except errors.FuploaderError as error:
            log.warning("could not abort an unfinished upload of %s: %s", self._key, error)

    def _send_part(self, upload_id: str, part: Part) -> ConfirmedPart:
        md5 = self._digests.md5_of(part)
        try:
            with View(self._archive, part) as body:
                confirmed = self._service.put_part(self._full, upload_id, part, body, md5)
        except Refusal as refusal:
            if part.number <= FEWEST_PARTS or refusal.answer.status != 400:
                raise
            raise errors.StoreRefused(
                refusal.message,
                hint=f"some services take {FEWEST_PARTS:,} parts at most: set part_size_bytes to "
                f"{-(-self._archive.size_bytes // FEWEST_PARTS):,} or more",
            ) from refusal
        if not confirmed.md5:
            self._sent.note(upload_id, confirmed, md5)
        if confirmed.md5 not in ("", md5.hex()):
            raise errors.StoreUnavailable(
                f"part {part.number} of {self._address}: the service confirmed "
                f"md5 {confirmed.md5}, but {md5.hex()} was sent",
                hint="the part will be sent again; if this goes on, the ETag is not an md5, "
                "because the bucket encrypts without saying so: set encryption to what it does",
            )
        return confirmed

    def _states_our_digest(self, there: Stated) -> bool:
        if there.size_bytes != self._archive.size_bytes:
            return False
        algorithm, part_bytes = self._comparable(there)
        return algorithm is not None and there.digest == self._digests.whole(algorithm, part_bytes)

    def _receipt(self, there: Stated, *, already_there: bool) -> StoredObject:
        """Compare everything that the service states with what is here.

        Raises `ObjectConflict` for another archive, and `DigestMismatch` for an object that
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
            self._address,
            self._key,
            archive.size_bytes,
            archive.sha256,
            already_there=already_there,
        )

    def _conflict(self, there: Stated, digest: str) -> errors.ObjectConflict:
        return conflict(self._archive, self._address, there.size_bytes, digest)

    def _mismatch(self, stated: str, ours: str) -> errors.DigestMismatch:
        return errors.DigestMismatch(
            f"{self._address}: the service states {stated}; {self._archive.path} has {ours}",
            hint="local data was kept; look at the object, remove it, and upload again",
        )

    def _comparable(self, there: Stated) -> tuple[Algorithm | None, int]:
        """Which digest to compare, and the size of the parts that it is made of."""
        if there.algorithm != "md5-of-parts":
            return there.algorithm, 0
        noted = there.metadata.get(PART_BYTES, "")
        part_bytes = int(noted) if noted.isdecimal() else self._part_bytes
        count = int(there.digest.rpartition("-")[2])
        if part_bytes > 0 and -(-there.size_bytes // part_bytes) == count:
            return there.algorithm, part_bytes
        return None, 0  # cut in a way that is not known: read it back

    def _read_back(self) -> str:
        digest = hashlib.sha256()
        try:
            for offset in range(0, self._archive.size_bytes, READ_BACK_BYTES):
                digest.update(self._service.read(self._full, offset, READ_BACK_BYTES) or b"")
        except errors.ColdObject as error:
            raise errors.ColdObject(
                f"{error.message}; it can be confirmed only by reading it back, because the "
                "service states no digest of it (the bucket encrypts with a key of its own)",
                hint="local data was kept; set storage_class to one that can be read (GLACIER_IR), "
                "or encryption to AES256, and remove or restore this object",
            ) from error
        return digest.hexdigest()
