"""Where the files of one task are while it runs, and what is known of those that are finished.

    parts/KEY.part, KEY.json    files in work (`part_file.py`)
    done.jsonl                  a line for each finished file: name, size, digest, headers
    files/                      finished files

What must always hold:

- A file counts as finished if `done.jsonl` has a line for it and its bytes have the digest in that
  line. `take_over` compares them, so neither a crash nor a power cut can make a bad file count.
- The line is written before the file is moved, so no crash leaves a finished file without one.
- No existing file is overwritten: a second file of a name becomes `name~2`.
- One process at a time uses the folder.

`KEY` is made from address and name, so the same task finds its files again when its list grew or
was sorted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from fuploader_dagster.disk import durable
from fuploader_dagster.disk.file_digest import digest_of
from fuploader_dagster.disk.own_files import closed_after, folder_mode, open_own, read_own
from fuploader_dagster.disk.temporaries import lock_now
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import UNREADABLE_JSON, SlotInUse
from fuploader_dagster.fetching.addresses import Address
from fuploader_dagster.fetching.part_file import PartFile
from fuploader_dagster.slots.numbered_names import numbered_name

LOG_NAME = "done.jsonl"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class DoneFile(msgspec.Struct, frozen=True):
    """A finished file."""

    key: str
    file: str
    """Its name in the folder of files."""
    name: str
    """What it is to be called."""
    size_bytes: int
    sha256: str
    content_type: str = ""
    headers: dict[str, str] = {}


class TaskFolder:
    """A context manager. Its methods are called from one thread."""

    def __init__(self, work: Path, files: Path | None = None) -> None:
        """`files`: where finished files go under their names, for people. Without it they go to
        `files/` in `work`, under their keys."""
        self._work = work
        self._parts = work / "parts"
        self.files = files or work / "files"
        self._for_people = files is not None
        self.is_new = not self._parts.exists()
        """Whether there is nothing to take over."""
        with naming_disk_trouble(work):
            for folder in (work.parent, *([files] if files is not None else [])):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self._work, self._parts, self.files):  # nothing of them need be durable
                if not folder.is_dir():
                    folder.mkdir(folder_mode(folder.parent))
        self._lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        if lock_now(self._lock, fcntl.LOCK_EX) is False:
            os.close(self._lock)
            raise SlotInUse(f"another process is fetching into {work}")
        self.done: dict[str, DoneFile] = {}
        self._taken_over = False
        self._log = open_own(work / LOG_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT)

    def __enter__(self) -> TaskFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._log)
        os.close(self._lock)

    def take_over(self) -> None:
        """Find finished files, once. Reads all of them, so call this in a thread."""
        if self._taken_over:
            return
        self._taken_over = True
        path = self._work / LOG_NAME
        log = read_own(path)
        if log and not log.endswith(b"\n"):
            with naming_disk_trouble(path):
                durable.write_all(self._log, b"\n")
        for line in log.splitlines():
            try:
                done = msgspec.json.decode(line, type=DoneFile)
            except UNREADABLE_JSON:
                continue  # a crash cut it off
            self.done.pop(done.key, None)
            with naming_disk_trouble(self.files):
                if _is(self.files / done.file, done):
                    self.done[done.key] = done
                elif _is(self._parts / f"{done.key}.part", done):
                    self._name(done)

    def part(self, key: str) -> PartFile:
        """The file in work for this key."""
        return PartFile(self._parts, key, is_new=self.is_new)

    def may_have(self, key: str) -> bool:
        """Whether an earlier process may have left a part of it."""
        return not self.is_new and (self._parts / f"{key}.json").exists()

    def finish(
        self, key: str, part: PartFile, name: str, content_type: str, headers: dict[str, str]
    ) -> DoneFile:
        """Note a file whose bytes are all here, and give it its name."""
        part.close()
        done = DoneFile(
            key, name if self._for_people else key, name,
            part.size_bytes, part.digest.hexdigest(), content_type, headers,
        )  # fmt: skip
        with naming_disk_trouble(self.files):
            done = self._name(done)
        part.discard()
        return done

    def _name(self, done: DoneFile) -> DoneFile:
        """Move the part to where its line says, or to the next free number of that name."""
        part = self._parts / f"{done.key}.part"
        if self._for_people:
            part.chmod(0o666 & ~_umask())
        wanted, number = done.file, 1
        while True:
            done = msgspec.structs.replace(done, file=wanted)
            if not os.path.lexists(self.files / wanted):
                durable.write_all(self._log, msgspec.json.encode(done) + b"\n")
                try:
                    if self._for_people:
                        _move(part, self.files / wanted)
                    else:
                        part.rename(self.files / wanted)
                    break
                except FileExistsError:
                    pass  # another program was faster
            number += 1
            wanted = numbered_name(done.name, number)
        self.done[done.key] = done
        return done

    def path(self, done: DoneFile) -> Path:
        """Where a finished file is."""
        return self.files / done.file

    def sync(self) -> None:
        """Make all that is finished durable. Waits for the disk, so call this in a thread."""
        with naming_disk_trouble(self.files):
            durable.syncfs(self._log)
            with closed_after(os.open(self.files, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
                durable.syncfs(descriptor)


def keys_of(addresses: Sequence[Address]) -> list[str]:
    """The key of each. Two equal ones get different keys: both files are kept."""
    seen: Counter[str] = Counter()
    keys = []
    for address in addresses:
        text = f"{address.url}\0{address.name}".encode("utf-8", "surrogatepass")
        key = hashlib.sha256(text).hexdigest()[:24]
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return keys


def numbered(names: Iterable[str]) -> list[str]:
    """The names, the second of a kind as `name~2`."""
    taken: set[str] = set()
    found = []
    for name in names:
        number, wanted = 1, name
        while wanted in taken:
            number += 1
            wanted = numbered_name(name, number)
        taken.add(wanted)
        found.append(wanted)
    return found


def _is(path: Path, done: DoneFile) -> bool:
    """Whether this is the finished file, byte by byte."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size != done.size_bytes:
            return False
        return digest_of(path)[1].hex() == done.sha256
    except FileNotFoundError:
        return False


def _move(source: Path, target: Path) -> None:
    """Raises `FileExistsError` rather than to overwrite anything."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", target) from None
        source.rename(target)  # a file system without links


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
