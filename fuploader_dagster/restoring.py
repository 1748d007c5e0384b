"""A folder into which members of an archive are written.

What must always hold: nothing is written outside the folder, whatever the members are called and
whatever links lie in the folder; no existing file is changed; a member that could not be read to
its end leaves no file. A file that is there already with the same content counts as restored, so
a restore that was interrupted can be repeated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fuploader_dagster.errors import PermanentError
from fuploader_dagster.fileio import make_dirs, naming_disk_trouble, write_all

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Refused(PermanentError):
    """A member that cannot be written here: its name leads out, or something is in its place."""


class RestoreFolder:
    """Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        make_dirs(folder)
        self._folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self._descriptor)

    def write(self, name: str, payload: Iterable[memoryview]) -> bool:
        """Write a member; False if the same content was there already. Raises `Refused`.

        What `payload` raises passes through, and no file is left.
        """
        parts = safe_parts(name)
        if not parts:
            raise Refused(f"{name!r} is no name of a file")
        with self._parent(name, parts[:-1]) as parent:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                file = os.open(parts[-1], flags, 0o644, dir_fd=parent)
            except FileExistsError:
                if self._same(parent, parts[-1], payload):
                    return False
                raise Refused(
                    f"{name!r} is there already with other content",
                    hint="restore into an empty folder",
                ) from None
            except OSError as e:
                raise Refused(f"{name!r} cannot be created: {e.strerror}") from e
            try:
                with naming_disk_trouble(self._folder / name):
                    for piece in payload:
                        write_all(file, piece)
            except BaseException:
                os.unlink(parts[-1], dir_fd=parent)
                raise
            finally:
                os.close(file)
        return True

    def directory(self, name: str) -> None:
        """Create a directory below the folder; one that is there already is no error."""
        with self._parent(name, safe_parts(name)):
            pass

    @contextmanager
    def _parent(self, name: str, parts: list[str]) -> Iterator[int]:
        """The directory, made where missing, step by step without following links."""
        descriptor = os.dup(self._descriptor)
        try:
            for part in parts:
                try:
                    try:
                        below = os.open(part, _DIRECTORY, dir_fd=descriptor)
                    except FileNotFoundError:
                        _make_dir(part, descriptor)
                        below = os.open(part, _DIRECTORY, dir_fd=descriptor)
                except OSError as e:
                    raise Refused(
                        f"{name!r} cannot be written: {part!r} is no directory here ({e.strerror})"
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
            return False  # a link, or nothing that we may read
        with os.fdopen(file, "rb") as there:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return False
            return all(there.read(len(piece)) == piece for piece in payload) and not there.read(1)


def safe_parts(name: str) -> list[str]:
    """The components of a member's name. Raises `Refused` for one that leads elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Refused(f"{name!r} leads out of the folder")
    return parts


def _make_dir(part: str, parent: int) -> None:
    with suppress(FileExistsError):  # another thread was faster
        os.mkdir(part, 0o755, dir_fd=parent)
