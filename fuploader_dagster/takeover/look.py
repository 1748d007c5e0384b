"""What FUploader left: directories and archives, keys in Redis, what it had stored already.

What must always hold:

- Nothing is changed, and nothing of anybody else's is taken for FUploader's: only names of its own
  forms count (`intake.leftovers`), and links are never followed.
- A FUploader that still runs is noticed: a process has one of its files open, it sends commands to
  Redis, or files change during the look.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fuploader_dagster.disk.file_digest import digest_of
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import ConfigError, DamagedSlot, SlotInUse
from fuploader_dagster.intake.leftovers import (
    ADOPTED_SLOT,
    NUMBERED_DIR,
    SLOT_DIR,
    archives_in,
    children,
    directories_in,
    is_archive,
    is_loose,
    is_of_fuploader,
    key_prefixes,
    root_of,
)
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.plain_files import FILES_NAME
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot, read_seal
from fuploader_dagster.takeover import plan, staging
from fuploader_dagster.takeover.archives import read_archive
from fuploader_dagster.takeover.former_redis import FormerKeys, FormerRedis, read_keys
from fuploader_dagster.takeover.store import StoredArchives

WATCH_SECONDS = 4.0
"""FUploader asks Redis for work every second, or every two in its documentation's example."""


def look(pipeline: Pipeline, redis: FormerRedis | None, *, stopped: bool = False) -> plan.Left:
    """Read everything. `stopped`: the caller guarantees that FUploader no longer runs.

    Raises `StateUnavailable` and `StoreUnavailable` if Redis or the store is needed and does not
    answer, `ConfigError` if the pipeline's folder has a name that FUploader uses.
    """
    root, layout = root_of(pipeline), pipeline.layout
    if layout.root.parent == root and is_of_fuploader(layout.root.name):
        raise ConfigError(
            f"the pipeline's folder is {layout.root}, a name that FUploader uses itself",
            hint="give the pipeline another name, or another storage_root and takeover.root",
        )
    began = time.monotonic()
    used = key_prefixes(pipeline)
    alive = "" if stopped else _open_below(root, layout)
    keys = [read_keys(prefix, redis.dump(prefix)) for prefix in used] if redis else []
    before = _listing(root, layout)
    left = _ask_store(_on_disk(root, layout, keys), pipeline)
    if not stopped and not alive and (left.directories or left.archives or left.keys):
        alive = redis.user_of(used, WATCH_SECONDS) if redis else ""
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
        if not alive and _listing(root, layout) != before:
            alive = f"files below {root} changed while they were being read"
    return replace(left, alive=alive)


def refuse_if_alive(alive: str, root: Path) -> None:
    """Raise `SlotInUse` if FUploader still runs."""
    if alive:
        raise SlotInUse(
            f"FUploader still works on {root}: {alive}",
            hint="stop it, all of its processes; if you know that it does not run, "
            "`fuploader migrate --stopped` skips this check",
        )


def _on_disk(root: Path, layout: Layout, keys: Sequence[FormerKeys]) -> plan.Left:
    """What is below FUploader's storage root, and what a take-over staged or sealed of it."""
    directories, archives, sealed = _staged(layout)
    for path, kind in directories_in(root, layout):
        source = path.relative_to(root).as_posix()
        below = filter(is_loose, children(path)) if kind == "loose" else _files(path)
        found, waiting = _read_files(below, path), plan.is_waiting(source, keys)
        directories.append(plan.LeftDirectory(path, source, kind, *found, waiting))
    filled = {directory.path.parent for directory in directories if directory.files}
    archives += [
        plan.LeftArchive(
            path,
            path.relative_to(root).as_posix(),
            *read_archive(path),
            directory_there=path.with_name(path.name.partition(".")[0]).is_dir(),
            siblings=path.parent in filled,
        )
        for path in archives_in(root, layout)
    ]
    empty = [one.path for one in directories if not one.files and not one.others]
    return plan.Left(
        root=root,
        directories=tuple(one for one in directories if one.path not in empty),
        archives=tuple(archives),
        empty=(*empty, *_frame(root)),
        interrupted=tuple(sealed),
        adopted=_adopted(layout, sealed),
        keys=tuple(one for one in keys if one.keys),
        links=tuple(_links(root)),
        taken_before=frozenset(one.source for one in staging.taken_over(layout)),
    )


def _staged(layout: Layout) -> tuple[list[plan.LeftDirectory], list[plan.LeftArchive], list[Path]]:
    """What an interrupted take-over staged: directories and archives to seal, and what it had
    sealed already."""
    directories, archives, sealed = [], [], []
    for path in staging.directories(layout):
        origin, archive = staging.origin_of(path), path / staging.ARCHIVE_NAME
        source, waiting = origin.source, not origin.maybe_stored
        if (path / SEAL_NAME).exists():
            sealed.append(path)
        elif archive.exists():
            archives.append(plan.LeftArchive(archive, source, *read_archive(archive), staged=path))
        else:
            found = _read_files(_files(path / FILES_NAME), path / FILES_NAME)
            directories.append(plan.LeftDirectory(path, source, "staged", *found, waiting))
    return directories, archives, sealed


def _adopted(layout: Layout, interrupted: Iterable[Path]) -> dict[plan.Content, str]:
    """What earlier take-overs sealed and nobody has shipped yet: content to partition."""
    found: dict[plan.Content, str] = {}
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
) -> tuple[tuple[plan.LeftFile, ...], tuple[Path, ...]]:
    """Size and digest of each file; what is no file."""
    files, others = [], []
    for path in found:
        if path.is_symlink() or not path.is_file():
            others.append(path)
            continue
        name = path.relative_to(folder).as_posix()
        files.append(plan.LeftFile(path, name, *digest_of(path), path.stat().st_mtime))
    return tuple(files), tuple(others)


def _links(root: Path) -> Iterator[Path]:
    """Symbolic links with names of FUploader's."""
    for path in children(root):
        if path.is_symlink() and (is_of_fuploader(path.name) or is_archive(path.name)):
            yield path
    for slot in _slots(root):
        inner = [one for one in children(slot) if NUMBERED_DIR.fullmatch(one.name)]
        yield from (one for one in (slot, *inner) if one.is_symlink())


def _frame(root: Path) -> list[Path]:
    """FUploader's own folders around its directories, inner ones first."""
    return [path for path in (*_slots(root), root / "active", root / "sealed") if path.is_dir()]


def _slots(root: Path) -> list[Path]:
    """What has the name of a slot, in the layout with `active` and `sealed`."""
    found = (*children(root / "active"), *children(root / "sealed"))
    return [path for path in found if SLOT_DIR.fullmatch(path.name)]


def _listing(root: Path, layout: Layout) -> set[tuple[str, int, int]]:
    """Path, size and time of each file: differs from an earlier listing if somebody writes here."""
    folders = [path for path, _ in directories_in(root, layout)]
    files = [path for folder in folders for path in _files(folder) if path.is_file()]
    found = set()
    for path in (*files, *archives_in(root, layout)):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.add((str(path), status.st_size, status.st_mtime_ns))
    return found


def _ask_store(left: plan.Left, pipeline: Pipeline) -> plan.Left:
    """Add which of the archives, and of the files that may be stored, are in the store."""
    doubtful = [one for one in left.directories if one.maybe_stored]
    if not doubtful and not left.archives:
        return left
    times = [file.changed_at for one in doubtful for file in one.files]
    times += [one.path.stat().st_mtime for one in left.archives]
    names = [one.path.name for one in left.archives]
    stored = StoredArchives(pipeline, pipeline.store.open(), names, since=min(times))
    archives = tuple(replace(one, stored_as=stored.holding(one.path)) for one in left.archives)
    contents: Mapping[plan.Content, str] = {}
    if doubtful or any(not one.stored_as and one.members for one in archives):
        contents = stored.newest_contents()
    return replace(left, archives=archives, stored=contents, stored_looked_at=stored.looked_at)


def _open_below(root: Path, layout: Layout) -> str:
    """A process with a file of FUploader's open, in words; empty if there is none we may see."""
    for pid, target in _open_files():
        if root not in target.parents or layout.root in target.parents:
            continue
        first = target.relative_to(root).parts[0]
        if is_of_fuploader(first) or is_archive(first):
            return f"process {pid} has {target} open"
    return ""


def _open_files() -> Iterator[tuple[int, Path]]:
    """Process and file, for everything that other processes have open, as far as we may see it."""
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # it ended meanwhile, or belongs to another user
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    yield int(process.name), link.readlink()
