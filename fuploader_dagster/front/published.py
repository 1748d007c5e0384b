"""What this node gave to the queue: so that a message that nothing here has yet is known to wait.

What must always hold: an id is noted before its request is answered, by whichever process. The
files may be lost, and are not synced: then such a message is unknown, as without them.

Format: `published` in the pipeline's folder, digests of ids (BLAKE2b) of 16 bytes. A file with as
many as should be remembered is renamed to `published-before`, in place of the one before it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.disk.own_files import opened_own
from fuploader_dagster.disk.temporaries import is_at
from fuploader_dagster.disk.trouble import naming_disk_trouble

_DIGEST_BYTES = 16
_READ_BYTES = 1 << 20


class Published:
    def __init__(self, path: Path, most: int) -> None:
        """At least the last `most` ids are remembered."""
        self._path = path
        self._before = path.with_name(f"{path.name}-before")
        self._most_bytes = most * _DIGEST_BYTES

    def note(self, ids: Iterable[str]) -> None:
        """They are in the queue. Raises `DiskFailed`."""
        digests = b"".join(map(_digest, ids))
        with naming_disk_trouble(self._path):
            make_dirs(self._path.parent)
            with opened_own(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
                os.write(descriptor, digests)
                if os.fstat(descriptor).st_size >= self._most_bytes:
                    self._begin_another(descriptor)

    def __contains__(self, message_id: str) -> bool:
        wanted = _digest(message_id)
        return any(_has(path, wanted) for path in (self._path, self._before))

    def _begin_another(self, full: int) -> None:
        fcntl.flock(full, fcntl.LOCK_EX)  # several processes find it full
        if is_at(full, self._path):
            self._path.replace(self._before)


def _has(path: Path, wanted: bytes) -> bool:
    """Whether the digest is in the file, wherever it begins: a write may have been cut off."""
    with naming_disk_trouble(path):
        try:
            with opened_own(path, os.O_RDONLY) as descriptor:
                end = b""
                while piece := os.read(descriptor, _READ_BYTES):
                    if wanted in end + piece:
                        return True
                    end = piece[1 - _DIGEST_BYTES :]
        except FileNotFoundError:
            pass
    return False


def _digest(message_id: str) -> bytes:
    return hashlib.blake2b(
        message_id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES
    ).digest()
