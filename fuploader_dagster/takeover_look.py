"""What FUploader left: read from its storage root, its Redis and the object store.

What must always hold: nothing is changed, and nothing of anybody else's is taken for FUploader's:
only names of its own forms count, and in its flat layout, which lies open in the storage root, all
else is left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from fuploader_dagster.config import Pipeline
from fuploader_dagster.errors import ConfigError, DamagedArchive, DamagedSlot, SlotInUse
from fuploader_dagster.foreign import ForeignArchive, is_whole, refuse_foreign
from fuploader_dagster.former_state import (
    FormerKeys,
    FormerState,
    default_node,
    prefixes,
    read_keys,
)
from fuploader_dagster.frame_walk import Damage
from fuploader_dagster.layout import Layout
from fuploader_dagster.range_source import LocalFile, RangeSource
from fuploader_dagster.sealing import SEAL_NAME, SealedSlot, read_seal
from fuploader_dagster.segment import FILES_NAME
from fuploader_dagster.strategies import load_reference
from fuploader_dagster.takeover import (
    ADOPTED_SLOT,
    ArchiveState,
    Content,
    Kind,
    Left,
    LeftArchive,
    LeftDirectory,
    LeftFile,
    is_waiting,
)
from fuploader_dagster.takeover_store import StoredArchives
from fuploader_dagster.tar_scan import scan
from fuploader_dagster.temporaries import is_temporary

ORIGIN_NAME = "origin.json"
STAGED_ARCHIVE_NAME = "archive"
WATCH_SECONDS = 4.0
"""FUploader asks Redis for work every second; its documentation shows every two seconds."""


class TakenOver(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `taken-over.jsonl`."""

    source: str
    """Relative to FUploader's storage root."""
    partition: str
    """Empty where nothing of it had to be sealed."""
    files: int
    at: str
    """UTC, ISO 8601."""


_REDIS = "fuploader_dagster.resources.fuploader_redis:FuploaderRedis"
_FLAT_DIR = re.compile(r"slot_\d+_\d+|dir-\d{6,}")
"""After a recovery with keys of style `legacy_meta` its flat layout has `dir-000001` too."""
_SLOT_DIR = re.compile(r"slot-\d+")
_DIR = re.compile(r"dir-\d+")
_POOL = ".pool"
_ARCHIVE = re.compile(
    r"(slot_\d+_\d+|dir-\d+|\d{8}_\d{6}_\d{6}_[0-9a-f]{8})(\.[A-Za-z0-9]{1,10}){1,3}"
)
"""Named after its directory, or by the time; a packer of somebody's own may give other endings."""
_HASHED_AT_ONCE = 1 << 20


class Origin(msgspec.Struct, frozen=True):
    """`origin.json` in a staged directory: what it is going to be."""

    source: str
    kind: Kind
    maybe_stored: bool


def root_of(settings: Pipeline) -> Path:
    """FUploader's storage root."""
    return (settings.takeover.root or settings.storage_root).absolute()


def adopting(layout: Layout) -> Path:
    """Where directories are staged."""
    return layout.root / "adopting" / f"slot-{ADOPTED_SLOT}"


def journal(layout: Layout) -> Path:
    """What was taken over, a line for each directory or archive."""
    return layout.root / "taken-over.jsonl"


def is_pending(settings: Pipeline) -> bool:
    """Whether anything is left to take over. A look at a few folders; quick enough for a tick."""
    layout, root = settings.layout, root_of(settings)
    if adopting(layout).is_dir():  # a take-over died before it was through
        return True
    return any(True for _ in _units(root, layout)) or any(True for _ in _archives(root, layout))


def former_state(settings: Pipeline) -> FormerState | None:
    """Access to the Redis in which FUploader kept its state; None if there is none."""
    url = settings.takeover.redis_url or settings.state.redis_url()
    if url is None:
        return None
    state: FormerState = load_reference(_REDIS)(url)
    return state


def look(settings: Pipeline, redis: FormerState | None, *, stopped: bool = False) -> Left:
    """Read everything. `stopped`: somebody vouches that FUploader does not run any more.

    Raises `StateUnavailable` and `StoreUnavailable` where Redis or the store are needed and do not
    answer, `ConfigError` where the pipeline's folder has a name that FUploader uses.
    """
    root, layout = root_of(settings), settings.layout
    if layout.root.parent == root and _is_of_fuploader(layout.root.name):
        raise ConfigError(
            f"the pipeline's folder would be {layout.root}, a name that FUploader uses itself",
            hint="give the pipeline another name, or another storage_root and takeover.root",
        )
    began = time.monotonic()
    used = list(_key_prefixes(settings))
    alive = "" if stopped else _open_below(root, layout)
    keys = [read_keys(prefix, redis.dump(prefix)) for prefix in used] if redis else []
    before = _listing(root, layout)
    directories, interrupted = _read_staged(layout)
    directories += [_read_directory(path, kind, root, keys) for path, kind in _units(root, layout)]
    archives = [_read_archive(path, root) for path in _archives(root, layout)]
    archives += _staged_archives(layout)
    filled = {directory.path.parent for directory in directories if directory.files}
    archives = [replace(one, siblings=one.path.parent in filled) for one in archives]
    empty = [one.path for one in directories if not one.files and not one.others]
    left = Left(
        root=root,
        directories=tuple(one for one in directories if one.path not in empty),
        archives=tuple(archives),
        empty=(*empty, *_frame(root, layout)),
        interrupted=tuple(interrupted),
        adopted=_adopted(layout, interrupted),
        keys=tuple(one for one in keys if one.keys),
        taken_before=frozenset(one.source for one in taken_over(layout)),
    )
    left = _ask_store(left, settings)
    if not stopped and not alive and (left.directories or left.archives or left.keys):
        alive = redis.user_of(used, WATCH_SECONDS) if redis else ""
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
        if not alive and _listing(root, layout) != before:
            alive = f"files below {root} change while they are looked at"
    return replace(left, alive=alive)


def refuse_if_alive(alive: str, root: Path) -> None:
    """Raise `SlotInUse` if FUploader still runs."""
    if alive:
        raise SlotInUse(
            f"FUploader still works on {root}: {alive}",
            hint="stop it, all of its processes; `fuploader migrate --stopped` goes on if you know "
            "that it does not run",
        )


def _key_prefixes(settings: Pipeline) -> Sequence[str]:
    former = settings.takeover
    nodes = [former.node_id] if former.node_id else [settings.node_id or "", default_node()]
    return prefixes(former.task_name or settings.name, nodes, former.key_prefix)


def _is_of_fuploader(name: str) -> bool:
    return name in ("active", "sealed") or bool(_FLAT_DIR.fullmatch(name))


def _units(root: Path, layout: Layout) -> Iterator[tuple[Path, Kind]]:
    """Directories with files of FUploader's, of both layouts."""
    for path in _children(root):
        if path == layout.root:
            continue
        if path.is_dir() and not path.is_symlink() and _FLAT_DIR.fullmatch(path.name):
            yield path, "flat"
    kinds: tuple[Kind, Kind] = ("active", "sealed")
    for kind in kinds:
        for path in _children(root / kind):
            if path.name == _POOL and path.is_dir():
                yield path, "pool"
            if not (_SLOT_DIR.fullmatch(path.name) and path.is_dir()):
                continue
            for inner in _children(path):
                if inner.is_dir() and not inner.is_symlink() and _DIR.fullmatch(inner.name):
                    yield inner, kind
            if any(_is_loose(inner) for inner in _children(path)):
                yield path, "loose"


def _frame(root: Path, layout: Layout) -> list[Path]:
    """FUploader's own folders around its directories, inner ones first."""
    if root / "active" == layout.root or root / "sealed" == layout.root:
        return []
    outer = [root / "active", root / "sealed"]
    inner = [path for one in outer for path in _children(one) if _SLOT_DIR.fullmatch(path.name)]
    return [path for path in (*inner, *outer) if path.is_dir()]


def _is_loose(path: Path) -> bool:
    """A file beside the directories of a slot that is no archive."""
    return not path.is_dir() and not _ARCHIVE.fullmatch(path.name)


def _archives(root: Path, layout: Layout) -> Iterator[Path]:
    folders = [root, *(root / "sealed" / path.name for path in _children(root / "sealed"))]
    for folder in folders:
        if folder == layout.root or (folder != root and not _SLOT_DIR.fullmatch(folder.name)):
            continue
        for path in _children(folder):
            if _ARCHIVE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                yield path


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if not is_temporary(path.name))


def _listing(root: Path, layout: Layout) -> set[tuple[str, int, int]]:
    """What would change if somebody wrote here."""
    folders = [path for path, _ in _units(root, layout)]
    files = [path for folder in folders for path in _files(folder) if path.is_file()]
    found = set()
    for path in (*files, *_archives(root, layout)):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.add((str(path), status.st_size, status.st_mtime_ns))
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no directory, in the order of names."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)
        for name in folders:
            if Path(parent, name).is_symlink():
                yield Path(parent, name)


def _read_directory(
    path: Path, kind: Kind, root: Path, keys: Sequence[FormerKeys] = ()
) -> LeftDirectory:
    source = path.relative_to(root).as_posix()
    found = [one for one in _children(path) if _is_loose(one)] if kind == "loose" else _files(path)
    files, others = _read_files(found, path)
    waiting = is_waiting(source, keys)
    return LeftDirectory(path, source, kind, files, others, waiting)


def _read_files(
    found: Iterable[Path], folder: Path
) -> tuple[tuple[LeftFile, ...], tuple[Path, ...]]:
    files, others = [], []
    for path in found:
        if path.is_symlink() or not path.is_file():
            others.append(path)
            continue
        digest = hashlib.sha256()
        with path.open("rb") as content:
            while block := content.read(_HASHED_AT_ONCE):
                digest.update(block)
        status = path.stat()
        name = path.relative_to(folder).as_posix()
        files.append(LeftFile(path, name, status.st_size, digest.digest(), status.st_mtime))
    return tuple(files), tuple(others)


def _read_archive(path: Path, root: Path, staged: Path | None = None) -> LeftArchive:
    source = path.relative_to(root).as_posix() if staged is None else _origin(staged).source
    directory = path.with_name(path.name.partition(".")[0])
    archive = LeftArchive(
        path, source, "whole", directory_there=staged is None and directory.is_dir(), staged=staged
    )
    opened = LocalFile(path)
    try:
        refuse_foreign(opened)
        return replace(archive, members=members_of(opened))
    except ForeignArchive:
        states: dict[bool | None, ArchiveState] = {True: "foreign", False: "torn", None: "unknown"}
        return replace(archive, state=states[is_whole(path)])
    except DamagedArchive:
        return replace(archive, state="torn")
    finally:
        opened.close()


def members_of(source: RangeSource) -> tuple[tuple[str, bytes, int], ...]:
    """Name without the directory, SHA-256 and size of each file in one of FUploader's archives.

    Raises `DamagedArchive` if it is not whole.
    """
    members = []
    for item in scan(source):
        if isinstance(item, Damage):
            raise DamagedArchive(str(item))
        digest = hashlib.sha256()
        for chunk in item.chunks():
            digest.update(chunk)
        if item.kind == "file":
            members.append((_without_directory(item.name), digest.digest(), item.size_bytes))
    return tuple(members)


def _without_directory(name: str) -> str:
    return name.partition("/")[2] or name


def _staged(layout: Layout) -> Iterator[Path]:
    for path in _children(adopting(layout)):
        if path.is_dir() and _DIR.fullmatch(path.name):
            yield path


def _origin(staged: Path) -> Origin:
    try:
        return msgspec.json.decode((staged / ORIGIN_NAME).read_bytes(), type=Origin)
    except (FileNotFoundError, msgspec.DecodeError):  # a crash came before it was there
        return Origin(staged.name, "staged", maybe_stored=True)


def _read_staged(layout: Layout) -> tuple[list[LeftDirectory], list[Path]]:
    """What an interrupted take-over staged: still to be sealed, and sealed already."""
    directories, sealed = [], []
    for path in _staged(layout):
        if (path / SEAL_NAME).exists():
            sealed.append(path)
        elif not (path / STAGED_ARCHIVE_NAME).exists():
            origin = _origin(path)
            files, others = _read_files(_files(path / FILES_NAME), path / FILES_NAME)
            waiting = not origin.maybe_stored
            directories.append(LeftDirectory(path, origin.source, "staged", files, others, waiting))
    return directories, sealed


def _staged_archives(layout: Layout) -> list[LeftArchive]:
    return [
        _read_archive(path / STAGED_ARCHIVE_NAME, path, staged=path)
        for path in _staged(layout)
        if (path / STAGED_ARCHIVE_NAME).exists() and not (path / SEAL_NAME).exists()
    ]


def _adopted(layout: Layout, interrupted: Iterable[Path]) -> dict[Content, str]:
    """What lies sealed by earlier take-overs."""
    sealed = layout.root / "sealed" / f"slot-{ADOPTED_SLOT}"
    found: dict[Content, str] = {}
    for directory in (*_children(sealed), *interrupted):
        with suppress(DamagedSlot, FileNotFoundError):  # shipping says what is damaged, or did it
            slot = SealedSlot(directory, read_seal(directory))
            for entry in slot.entries():
                found[(entry.name, entry.sha256)] = slot.seal.partition
    return found


def taken_over(layout: Layout) -> Iterator[TakenOver]:
    """What was taken over so far."""
    path = journal(layout)
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield msgspec.json.decode(line, type=TakenOver)
        except msgspec.DecodeError:
            continue  # torn by a crash; its directory is still staged


def _ask_store(left: Left, settings: Pipeline) -> Left:
    """Which archives, and which files of directories that may be stored, the store has."""
    doubtful = [one for one in left.directories if one.maybe_stored]
    if not doubtful and not left.archives:
        return left
    times = [file.changed_at for one in doubtful for file in one.files]
    times += [one.path.stat().st_mtime for one in left.archives]
    names = [one.path.name for one in left.archives]
    stored = StoredArchives.find(settings, settings.store.open(), names, since=min(times))
    archives = tuple(
        replace(one, stored_as=stored.holding(one.path.name, one.path)) for one in left.archives
    )
    contents: Mapping[tuple[str, bytes], str] = {}
    if doubtful or any(not one.stored_as and one.members for one in archives):
        contents = stored.newest_contents(members_of)
    return replace(left, archives=archives, stored=contents, stored_looked_at=stored.looked_at)


def _open_below(root: Path, layout: Layout) -> str:
    """A process that has a file of FUploader's open, in words; empty if none that we may see."""
    for pid, target in _open_files():
        if root not in target.parents or layout.root in target.parents:
            continue
        first = target.relative_to(root).parts[0]
        if pid != os.getpid() and (_is_of_fuploader(first) or _ARCHIVE.fullmatch(first)):
            return f"process {pid} has {target} open"
    return ""


def _open_files() -> Iterator[tuple[int, Path]]:
    """Process and file, of everything that is open on this machine and that we may see."""
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with suppress(OSError):  # it ended meanwhile, or is somebody else's
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    yield int(process.name), link.readlink()
