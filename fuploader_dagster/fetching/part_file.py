"""The bytes of one file that are here so far, and what is needed to go on after them.

    KEY.part    the first bytes of the file
    KEY.json    which version of it (a validator), how long it will be, and since which boot

What must always hold:

- What `write` got is with the kernel when it returns, so that kill -9 loses none of it.
- After a power cut nothing of a part is trusted: another boot begins again.
- There is no record for the first 256 KiB: most files are small, and two files for each cost more
  than fetching them again.
- A finished file has all its bytes. It is not synced; who relies on it syncs it (`task_folder.py`).
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import msgspec

from fuploader_dagster.disk.durable import write_all
from fuploader_dagster.disk.own_files import open_own, opened_own, read_own
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import UNREADABLE_JSON
from fuploader_dagster.fetching.running_digest import RunningDigest

RECORDED_BYTES = 256 * 1024
_READ_BYTES = 1 << 20


class _Record(msgspec.Struct):
    validator: str
    total_bytes: int | None
    boot: str


class PartFile:
    """One file in work. Used by one attempt at a time."""

    def __init__(self, folder: Path, key: str, *, is_new: bool = False) -> None:
        """`is_new`: no earlier process can have left anything of it."""
        self.path = folder / f"{key}.part"
        self._record = folder / f"{key}.json"
        self._descriptor: int | None = None
        self._recorded = not is_new
        """Whether there may be a record."""
        self.size_bytes = 0
        self.digest = RunningDigest()
        self.validator = ""
        """What the server calls this version (for If-Range); empty if it has no name for it."""
        self.total_bytes: int | None = None

    def take_up(self) -> None:
        """Go on with what an earlier process left. Reads all of it, so call this in a thread."""
        try:
            record = msgspec.json.decode(read_own(self._record), type=_Record)
        except (FileNotFoundError, *UNREADABLE_JSON):
            return
        if record.boot != _boot() or not record.validator or not self.path.is_file():
            return
        digest, size = RunningDigest(), 0
        # Of a whole file the last byte is fetched again, because the answer has more to say.
        most = self.path.stat().st_size
        if record.total_bytes is not None:
            if most > record.total_bytes:
                return
            most = min(most, record.total_bytes - 1)
        with naming_disk_trouble(self.path), opened_own(self.path, os.O_RDONLY) as descriptor:
            while block := os.read(descriptor, min(_READ_BYTES, most - size)):
                digest.update(block)
                size += len(block)
        self.size_bytes, self.digest = size, digest
        self.validator, self.total_bytes = record.validator, record.total_bytes

    def begin(self, validator: str, total_bytes: int | None) -> None:
        """Begin with the first byte of this version."""
        with naming_disk_trouble(self.path):
            if self._recorded:  # first of all, or a crash mixes versions
                self._record.unlink(missing_ok=True)
                self._recorded = False
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
                self._descriptor = open_own(self.path, flags)
            elif self.size_bytes:
                os.ftruncate(self._descriptor, 0)
        self.size_bytes, self.digest = 0, RunningDigest()
        self.validator, self.total_bytes = validator, total_bytes

    def go_on(self) -> None:
        """Append to what is here."""
        if self._descriptor is None:
            with naming_disk_trouble(self.path):
                self._descriptor = open_own(self.path, os.O_WRONLY | os.O_APPEND)
                os.ftruncate(self._descriptor, self.size_bytes)

    def write(self, piece: bytes | memoryview) -> None:
        """The next bytes. Raises `DiskFull` or `DiskFailed`."""
        assert self._descriptor is not None, "begin() comes first"  # noqa: S101
        try:
            os_wrote = os.write(self._descriptor, piece)
            if os_wrote < len(piece):
                write_all(self._descriptor, memoryview(piece)[os_wrote:])
            self.digest.update(piece)
            self.size_bytes += len(piece)
            if self.validator and not self._recorded and self.size_bytes > RECORDED_BYTES:
                self._keep_record()
        except OSError:
            with naming_disk_trouble(self.path):
                raise

    def discard(self) -> None:
        """Remove what is here. May be repeated."""
        self.close()
        self.path.unlink(missing_ok=True)
        if self._recorded:
            self._record.unlink(missing_ok=True)
        self.size_bytes, self.validator, self._recorded = 0, "", False

    def close(self) -> None:
        """Let go of the file; what is here can be taken up again. May be repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _keep_record(self) -> None:
        record = _Record(self.validator, self.total_bytes, _boot())
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with opened_own(self._record, flags) as descriptor:
            write_all(descriptor, msgspec.json.encode(record))
        self._recorded = True


@lru_cache(1)
def _boot() -> str:
    """The same until the machine starts again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
