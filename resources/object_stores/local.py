"""Objects as files below a folder: for one machine, a mounted share, or to try things out.

What must always hold:

- An object appears under its key with all its bytes, durable, or not at all: it is written under
  a temporary name, synced, read back, and only then linked to its name.
- `link` makes a put create-only: unlike rename it never replaces a file.

The folder keeps no metadata: `head` reads the file and computes its digest. What a killed put left
is next to its object, under a temporary name that says which key it was for.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from pydantic import field_validator

from fuploader_dagster import errors
from fuploader_dagster.contracts.object_store import (
    ArchiveFile,
    ObjectInfo,
    ObjectStore,
    Progress,
    StoredObject,
    UnfinishedUpload,
)
from fuploader_dagster.contracts.relative_paths import placed
from fuploader_dagster.disk import durable
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.file_digest import digest_of
from fuploader_dagster.disk.temporaries import (
    final_name,
    is_held,
    is_temporary,
    remove_unless_held,
    temporary_file,
)
from fuploader_dagster.disk.trouble import FULL, disk_trouble
from fuploader_dagster.resources.object_stores.archive_bytes import (
    conflict,
    open_archive,
    refuse_changed,
)
from fuploader_dagster.resources.object_stores.keys import full_key
from fuploader_dagster.resources.object_stores.settings import ObjectStoreSettings

CHUNK_BYTES = 1 << 20

_NO_OBJECT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalSettings(ObjectStoreSettings):
    """A folder as an object store."""

    path: str
    """Path of the folder. It is created if it is missing."""

    @field_validator("path")
    @classmethod
    def _folder_relative_to_the_file(cls, path: str) -> str:
        return str(placed(Path(path).expanduser()))

    def connect(self) -> ObjectStore:
        return LocalObjectStore(Path(self.path).expanduser().absolute())

    def describe(self) -> str:
        return f"folder {self.shown('path')}"


class LocalObjectStore(ObjectStore):
    """See the module's docstring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        final = self._path(key)
        with _telling(f"storing {archive.path}", final):
            if final.is_dir():
                raise errors.StoreRefused(
                    f"{final} is a folder, so it cannot be an object too",
                    hint="give the archive another key",
                )
            if final.exists():
                return self._judge(key, archive)
            durable.make_dirs(final.parent, for_others=True)
            with temporary_file(final, for_others=True) as temporary:
                _copy(archive, temporary, progress)
                durable.fsync_file(temporary)
                _compare(archive, temporary)
                reached(CrashPoint.OBJECT_WRITTEN)
                created = _link(temporary, final)
        if not created:  # another process was quicker
            return self._judge(key, archive)
        return StoredObject(self.address(key), key, archive.size_bytes, archive.sha256)

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with _telling("reading", path):
            try:
                size, digest = digest_of(path)
            except _NO_OBJECT:
                return None
        return ObjectInfo(key, size, digest.hex())

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        path = self._path(key)
        with _telling("reading", path):
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    return file.read(length)
            except _NO_OBJECT:
                raise errors.StoreRefused(f"there is no object {self.address(key)}") from None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with _telling("listing", self.folder):
            found = sorted(
                (path.relative_to(self.folder).as_posix(), path)
                for path in self._files()
                if not is_temporary(path.name)
            )
            for key, path in found:
                if key.startswith(prefix):
                    yield ObjectInfo(key, path.stat().st_size, None)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _telling("removing", path):
            if path.is_file():
                durable.remove_file(path)

    def check(self) -> None:
        with _telling("creating a file", self.folder):
            durable.make_dirs(self.folder, for_others=True)
            with temporary_file(self.folder / "probe"):
                durable.fsync_dir(self.folder)

    def address(self, key: str) -> str:
        return self._path(key).as_uri()

    def unfinished(self, prefix: str = "") -> builtins.list[UnfinishedUpload]:
        """Temporary files that killed puts left, with the keys they were for."""
        found = []
        for path in self._files():
            if not is_temporary(path.name):
                continue
            key = path.with_name(final_name(path.name)).relative_to(self.folder).as_posix()
            if key.startswith(prefix) and not is_held(path):
                begun = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
                found.append(UnfinishedUpload(key, path.name, begun))
        return found

    def abort(self, upload: UnfinishedUpload) -> None:
        if is_temporary(upload.upload_id):
            remove_unless_held(self._path(upload.key).with_name(upload.upload_id))

    def _path(self, key: str) -> Path:
        return self.folder / full_key("", key)

    def _files(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if path.is_file())

    def _judge(self, key: str, archive: ArchiveFile) -> StoredObject:
        """The receipt if the existing file is the archive; otherwise raise `ObjectConflict`."""
        there = self.head(key)
        if there is None:
            raise errors.StoreUnavailable(f"{self.address(key)} was there and is gone")
        if there.sha256 != archive.sha256:
            raise conflict(archive, self.address(key), there.size_bytes, f"sha256 {there.sha256}")
        return StoredObject(
            self.address(key), key, archive.size_bytes, archive.sha256, already_there=True
        )


def _copy(archive: ArchiveFile, target: Path, progress: Progress | None) -> None:
    """Copy, and check that the archive still has the digest it was packed with."""
    digest, copied = hashlib.sha256(), 0
    with open_archive(archive) as source, target.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            copied += len(chunk)
            if progress is not None:
                progress(copied, archive.size_bytes)
    refuse_changed(archive, copied, digest.hexdigest())


def _compare(archive: ArchiveFile, copy: Path) -> None:
    size, digest = digest_of(copy)
    if (size, digest.hex()) != (archive.size_bytes, archive.sha256):
        raise errors.DigestMismatch(
            f"{copy} reads back as {size} bytes, sha256 {digest.hex()}; "
            f"{archive.size_bytes} bytes, sha256 {archive.sha256} were written",
            hint="the copy was removed, local data was kept; check the disk",
        )


def _link(temporary: Path, final: Path) -> bool:
    """Give the file its name; False if the name is taken."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        # FAT and some shares support no links, so we look first and then rename. An object still
        # appears whole or not at all.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if final.exists():
            return False
        durable.replace_durably(temporary, final)
    durable.fsync_dir(final.parent)
    return True


@contextmanager
def _telling(doing: str, path: Path) -> Iterator[None]:
    """Turn errors of the file system into ours, for the person on call."""
    try:
        yield
    except (errors.DiskFull, errors.DiskFailed, errors.ForeignFile) as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise _told(doing, path, error.__cause__) from error
    except OSError as error:
        raise _told(doing, path, error) from error


def _told(doing: str, path: Path, error: OSError) -> errors.FuploaderError:
    said = f"{doing}: {path}: {error.strerror}"
    if error.errno in (errno.EIO, errno.EROFS):
        return disk_trouble(error, path)
    if error.errno in (*FULL, errno.EFBIG):
        trouble = disk_trouble(error, path)
        return errors.StoreUnavailable(trouble.message, hint=trouble.hint)
    if error.errno == errno.ENAMETOOLONG:
        return errors.StoreRefused(said)
    if isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)):
        return errors.StoreRefused(said, hint="check the folder and its owner")
    return errors.StoreUnavailable(said, hint="check the disk or the mount")
