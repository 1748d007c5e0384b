"""Disk trouble: an `OSError` about a file becomes an error of ours that says what to do.

What must always hold: no `OSError` from reading or writing our own files ends a process. It becomes
a `DiskFull`, a `DiskFailed` or a `ForeignFile` that names the path, what the system said, and what
a person can do about it. Errors of the network pass unchanged.
"""

from __future__ import annotations

import errno
import os
import pwd
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuploader_dagster.errors import DiskFailed, DiskFull, ForeignFile, FuploaderError

FULL = (errno.ENOSPC, errno.EDQUOT)
_FOREIGN = (errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENXIO)
_OF_THE_NETWORK = (ConnectionError, socket.gaierror, socket.herror, ssl.SSLError)

MOVE_IT_AWAY = "it is not one of ours: look at it, and move it out of storage_root"


@contextmanager
def naming_disk_trouble(path: Path) -> Iterator[None]:
    """Turn an `OSError` about a file within the block into an error of ours.

    `path` is named if the system names none.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (isinstance(error, _OF_THE_NETWORK) and error.filename is None):
            raise  # not from the system, or not about a file
        raise disk_trouble(error, path) from error


def disk_trouble(error: OSError, path: Path) -> FuploaderError:
    """The error of ours for one from the system."""
    named = error.filename2 or error.filename
    where = str(path / _text(named)) if named else str(path)
    if error.errno in FULL:
        return DiskFull(
            f"no space left while writing {where}", hint="free some space; nothing was lost"
        )
    if error.errno == errno.EFBIG:
        return DiskFull(
            f"{where} cannot grow: this process may only write files of up to "
            f"{resource.getrlimit(resource.RLIMIT_FSIZE)[0]:,} bytes",
            hint="raise `ulimit -f` (LimitFSIZE= of a systemd unit), or lower seal_bytes and "
            "commit_bytes; nothing was lost",
        )
    if error.errno in _FOREIGN:
        return ForeignFile(
            f"{where} is in the way of a file or folder of ours: {error.strerror}",
            hint=MOVE_IT_AWAY,
        )
    return DiskFailed(
        f"the disk failed at {where}: {error.strerror or error}",
        hint=f"{_hint(error.errno, where)}; only synced messages were acknowledged",
    )


def _hint(number: int | None, where: str) -> str:
    if number == errno.EMFILE:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"this process may open at most {allowed} files: raise `ulimit -n` (LimitNOFILE= of a "
            f"systemd unit), or lower slots_per_worker"
        )
    if number in (errno.EACCES, errno.EPERM):
        return _not_allowed(where)
    return _HINTS.get(number or 0, _LOOK_AT_THE_DISK)


def _not_allowed(where: str) -> str:
    """Says who owns the file or folder, and as whom this process runs."""
    path = Path(where)
    for each in (path, *path.parents):
        try:
            owner = each.stat().st_uid
        except OSError:
            continue
        return (
            f"{each} belongs to {_user(owner)} and this process runs as {_user(os.geteuid())}: "
            f"run everything as one user, or change the owner"
        )
    return _LOOK_AT_THE_DISK


_LOOK_AT_THE_DISK = "look at the kernel's log (dmesg) and the disk"
_GONE = (
    "something removed or renamed it, or another disk was mounted over it; do not remove "
    "anything below storage_root while a drain runs"
)
_NAME_REFUSED = (
    "this file system does not allow such a name; use slot_format: segment, or a file system "
    "that allows names of 255 bytes in UTF-8"
)
_HINTS = {
    errno.ENFILE: "this machine has as many files open as fs.file-max allows: raise it",
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.ENOTEMPTY: _GONE,
    errno.ENAMETOOLONG: _NAME_REFUSED,
    errno.EILSEQ: _NAME_REFUSED,
}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _text(filename: str | bytes | int | os.PathLike[str]) -> str:
    return str(filename) if isinstance(filename, int) else os.fsdecode(filename)
