"""A folder into which an archive is restored: the only place that makes paths from members' names.

What must always hold: nothing is written outside the folder, whatever the members are called and
whatever links the folder contains; no existing file is changed; a file gets its name only when all
of it is written. So a restore that was killed, or that met damage, leaves no part of a member under
its name, and can be repeated: an existing file with the same content counts as restored.

Files are written in `.tmp-{16 hex digits}-restoring` in the folder, which the restore locks
(`disk/temporaries.py`). If it is killed, the next restore removes that.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from fuploader_dagster.disk import temporaries
from fuploader_dagster.disk.durable import make_dirs, write_all
from fuploader_dagster.disk.own_files import closed_after
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import PermanentError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_WORK = "restoring"


class Refused(PermanentError):
    """A member that cannot be written: its name leads outside, or something is in its place."""


class RestoreFolder:
    """Safe to use from several threads. A context manager."""

    def __init__(self, folder: Path) -> None:
        make_dirs(folder, for_others=True)
        for path in folder.iterdir():  # what killed restores left half written
            if _is_work(path.name) and path.is_dir() and not path.is_symlink():
                temporaries.remove_unless_held(path)
        self._folder = folder
        with ExitStack() as stack:
            work = stack.enter_context(temporaries.temporary_folder(folder / _WORK))
            flags = os.O_RDONLY | os.O_DIRECTORY
            self._work = stack.enter_context(closed_after(os.open(work, flags)))
            self._descriptor = stack.enter_context(closed_after(os.open(folder, flags)))
            self._stack = stack.pop_all()
        self._numbers = count()

    def close(self) -> None:
        """Remove what was not finished. May be repeated."""
        self._stack.close()

    def __enter__(self) -> RestoreFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, name: str, payload: Iterable[memoryview], *, again: bool = False) -> bool:
        """Write a member; False if a file with the same content exists. Raises `Refused`.

        `again`: this restore has already written a member of this name; the last one counts. What
        `payload` raises passes through, and leaves no file.
        """
        parts = safe_parts(name)
        if not parts:
            raise Refused(f"{name!r} is not a file name")
        with self._parent(name, parts[:-1]) as parent:
            if not again and _exists(name, parent, parts[-1]):
                if self._same(parent, parts[-1], payload):
                    return False
                raise Refused(
                    f"{name!r} already exists with other content",
                    hint="restore into an empty folder",
                )
            work = str(next(self._numbers))
            with naming_disk_trouble(self._folder):
                file = os.open(work, _NEW_FILE, 0o644, dir_fd=self._work)
            try:
                with naming_disk_trouble(self._folder):
                    for piece in payload:
                        write_all(file, piece)
                self._give_name(work, name, parent, parts[-1], again=again)
            finally:
                os.close(file)
                with suppress(FileNotFoundError):
                    os.unlink(work, dir_fd=self._work)
        return True

    def _give_name(self, work: str, name: str, parent: int, last: str, *, again: bool) -> None:
        places = {"src_dir_fd": self._work, "dst_dir_fd": parent}
        try:
            if again:
                os.replace(work, last, **places)  # noqa: PTH105  below open folders
                return
            try:
                os.link(work, last, follow_symlinks=False, **places)
            except OSError as e:
                if e.errno not in _NO_LINKS or _exists(name, parent, last):
                    raise
                # A file system without links: the next best way.
                os.rename(work, last, **places)  # noqa: PTH104
        except FileExistsError:
            raise Refused(f"another program created {name!r} during the restore") from None
        except OSError as e:
            raise Refused(f"{name!r} cannot be created: {e.strerror}") from e

    def directory(self, name: str) -> None:
        """Create a directory below the folder. An existing one is no error."""
        with self._parent(name, safe_parts(name)):
            pass

    @contextmanager
    def _parent(self, name: str, parts: list[str]) -> Iterator[int]:
        """The directory, made if missing, one level after the other, without following links."""
        descriptor = os.dup(self._descriptor)
        try:
            for part in parts:
                try:
                    try:
                        below = os.open(part, _DIRECTORY, dir_fd=descriptor)
                    except FileNotFoundError:
                        with suppress(FileExistsError):  # another thread was faster
                            os.mkdir(part, 0o755, dir_fd=descriptor)
                        below = os.open(part, _DIRECTORY, dir_fd=descriptor)
                except OSError as e:
                    raise Refused(
                        f"{name!r} cannot be written: {part!r} is not a directory ({e.strerror})"
                    ) from e
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def _same(parent: int, part: str, payload: Iterable[memoryview]) -> bool:
        try:
            file = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        except OSError:
            return False  # a link, or a file that we may not read
        with os.fdopen(file, "rb") as there:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return False
            return all(there.read(len(piece)) == piece for piece in payload) and not there.read(1)


def safe_parts(name: str) -> list[str]:
    """The components of a member's name. Raises `Refused` if it leads outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Refused(f"{name!r} leads outside the folder")
    if parts and _is_work(parts[0]):
        raise Refused(f"{name!r} is a name that the restore itself uses")
    return parts


def _is_work(name: str) -> bool:
    return temporaries.is_temporary(name) and temporaries.final_name(name) == _WORK


def _exists(name: str, parent: int, part: str) -> bool:
    """Whether anything has this name, even a link that leads nowhere."""
    try:
        os.stat(part, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as e:
        raise Refused(f"{name!r} cannot be created: {e.strerror}") from e
    return True
