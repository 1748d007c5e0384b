"""What is below FUploader's storage root, and what a take-over has staged of it.

What must always hold: nothing is changed, and nothing of anybody else's is taken for FUploader's.
Only names of its own forms count (`intake.leftovers`); everything else in the storage root is left
alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from fuploader_dagster.disk.file_digest import digest_of
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import UNREADABLE_JSON, DamagedSlot
from fuploader_dagster.intake.leftovers import (
    ADOPTED_SLOT,
    NUMBERED_DIR,
    SLOT_DIR,
    adopting,
    archives_in,
    children,
    directories_in,
    is_archive,
    is_loose,
    is_of_fuploader,
    journal,
)
from fuploader_dagster.slots.plain_files import FILES_NAME
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot, read_seal
from fuploader_dagster.takeover.former_redis import FormerKeys
from fuploader_dagster.takeover.plan import Content, Kind, LeftDirectory, LeftFile, is_waiting

ORIGIN_NAME = "origin.json"
STAGED_ARCHIVE_NAME = "archive"


class TakenOver(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `taken-over.jsonl`."""

    source: str
    """Relative to FUploader's storage root."""
    partition: str
    """Empty if nothing of it had to be sealed."""
    files: int
    at: str
    """UTC, ISO 8601."""


class Origin(msgspec.Struct, frozen=True):
    """`origin.json` in a staged directory: where it comes from."""

    source: str
    kind: Kind
    maybe_stored: bool


def taken_over(layout: Layout) -> Iterator[TakenOver]:
    """What was taken over so far."""
    path = journal(layout)
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield msgspec.json.decode(line, type=TakenOver)
        except UNREADABLE_JSON:
            continue  # torn by a crash; its directory is still staged


def links(root: Path, layout: Layout) -> Iterator[Path]:
    """Symbolic links with names of FUploader's. They are never followed."""
    for path in children(root):
        if path.is_symlink() and (is_of_fuploader(path.name) or is_archive(path.name)):
            yield path
    for kind in ("active", "sealed"):
        for path in children(root / kind):
            if layout.root == root / kind or not SLOT_DIR.fullmatch(path.name):
                continue
            inner = [one for one in children(path) if NUMBERED_DIR.fullmatch(one.name)]
            yield from (one for one in (path, *inner) if one.is_symlink())


def frame(root: Path, layout: Layout) -> list[Path]:
    """FUploader's own folders around its directories, inner ones first."""
    if root / "active" == layout.root or root / "sealed" == layout.root:
        return []
    outer = [root / "active", root / "sealed"]
    inner = [path for one in outer for path in children(one) if SLOT_DIR.fullmatch(path.name)]
    return [path for path in (*inner, *outer) if path.is_dir()]


def listing(root: Path, layout: Layout) -> set[tuple[str, int, int]]:
    """Path, size and time of each file: differs from an earlier listing if somebody writes here."""
    folders = [path for path, _ in directories_in(root, layout)]
    files = [path for folder in folders for path in _files(folder) if path.is_file()]
    found = set()
    for path in (*files, *archives_in(root, layout)):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.add((str(path), status.st_size, status.st_mtime_ns))
    return found


def read_directory(path: Path, kind: Kind, root: Path, keys: Sequence[FormerKeys]) -> LeftDirectory:
    """A directory of FUploader's with the size and digest of each file."""
    source = path.relative_to(root).as_posix()
    found = [one for one in children(path) if is_loose(one)] if kind == "loose" else _files(path)
    return LeftDirectory(path, source, kind, *_read_files(found, path), is_waiting(source, keys))


def staged_dirs(layout: Layout) -> list[Path]:
    """The directories that a take-over has staged."""
    found = children(adopting(layout))
    return [path for path in found if path.is_dir() and NUMBERED_DIR.fullmatch(path.name)]


def origin_of(path: Path) -> Origin:
    """Where a staged directory comes from."""
    try:
        return msgspec.json.decode((path / ORIGIN_NAME).read_bytes(), type=Origin)
    except (FileNotFoundError, *UNREADABLE_JSON):  # a crash came first
        return Origin(path.name, "staged", maybe_stored=True)


def read_staged(layout: Layout) -> tuple[list[LeftDirectory], list[Path], list[Path]]:
    """What an interrupted take-over staged: directories to seal; those that hold an archive; those
    sealed already."""
    directories, with_archive, sealed = [], [], []
    for path in staged_dirs(layout):
        if (path / SEAL_NAME).exists():
            sealed.append(path)
        elif (path / STAGED_ARCHIVE_NAME).exists():
            with_archive.append(path)
        else:
            origin, folder = origin_of(path), path / FILES_NAME
            found = _read_files(_files(folder), folder)
            waiting = not origin.maybe_stored
            directories.append(LeftDirectory(path, origin.source, "staged", *found, waiting))
    return directories, with_archive, sealed


def adopted(layout: Layout, interrupted: Iterable[Path]) -> dict[Content, str]:
    """What earlier take-overs sealed and nobody has shipped yet: content to partition."""
    found: dict[Content, str] = {}
    for directory in (*children(layout.sealed(ADOPTED_SLOT, 0).parent), *interrupted):
        with suppress(DamagedSlot, FileNotFoundError):  # shipping reports it, or did it
            slot = SealedSlot(directory, read_seal(directory))
            for entry in slot.entries():
                found[(entry.name, entry.sha256)] = slot.seal.partition
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder except directories, in the order of names."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)
        for name in folders:
            if Path(parent, name).is_symlink():
                yield Path(parent, name)


def _read_files(
    found: Iterable[Path], folder: Path
) -> tuple[tuple[LeftFile, ...], tuple[Path, ...]]:
    files, others = [], []
    for path in found:
        if path.is_symlink() or not path.is_file():
            others.append(path)
            continue
        _, digest = digest_of(path)
        status = path.stat()
        name = path.relative_to(folder).as_posix()
        files.append(LeftFile(path, name, status.st_size, digest, status.st_mtime))
    return tuple(files), tuple(others)
