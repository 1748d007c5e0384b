"""What FUploader left: directories and archives, keys in Redis, what it had stored already.

What must always hold: nothing is changed, and a FUploader that still runs is noticed: a process has
one of its files open, it sends commands to Redis, or files change during the look.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import ConfigError, SlotInUse
from fuploader_dagster.intake.leftovers import (
    archives_in,
    directories_in,
    is_archive,
    is_of_fuploader,
    key_prefixes,
    root_of,
)
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.takeover.archives import read_archive
from fuploader_dagster.takeover.folders import (
    STAGED_ARCHIVE_NAME,
    adopted,
    frame,
    links,
    listing,
    origin_of,
    read_directory,
    read_staged,
    taken_over,
)
from fuploader_dagster.takeover.former_redis import FormerRedis, read_keys
from fuploader_dagster.takeover.plan import Content, Left, LeftArchive
from fuploader_dagster.takeover.store import StoredArchives

WATCH_SECONDS = 4.0
"""FUploader asks Redis for work every second, or every two in its documentation's example."""


def look(pipeline: Pipeline, redis: FormerRedis | None, *, stopped: bool = False) -> Left:
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
    used = list(key_prefixes(pipeline))
    alive = "" if stopped else _open_below(root, layout)
    keys = [read_keys(prefix, redis.dump(prefix)) for prefix in used] if redis else []
    before = listing(root, layout)
    directories, with_archive, interrupted = read_staged(layout)
    found = directories_in(root, layout)
    directories += [read_directory(path, kind, root, keys) for path, kind in found]
    filled = {directory.path.parent for directory in directories if directory.files}
    archives = [
        LeftArchive(
            path,
            path.relative_to(root).as_posix(),
            *read_archive(path),
            directory_there=path.with_name(path.name.partition(".")[0]).is_dir(),
            siblings=path.parent in filled,
        )
        for path in archives_in(root, layout)
    ]
    for staged in with_archive:
        path = staged / STAGED_ARCHIVE_NAME
        source = origin_of(staged).source
        archives.append(LeftArchive(path, source, *read_archive(path), staged=staged))
    empty = [one.path for one in directories if not one.files and not one.others]
    left = Left(
        root=root,
        directories=tuple(one for one in directories if one.path not in empty),
        archives=tuple(archives),
        empty=(*empty, *frame(root, layout)),
        interrupted=tuple(interrupted),
        adopted=adopted(layout, interrupted),
        keys=tuple(one for one in keys if one.keys),
        links=tuple(links(root, layout)),
        taken_before=frozenset(one.source for one in taken_over(layout)),
    )
    left = _ask_store(left, pipeline)
    if not stopped and not alive and (left.directories or left.archives or left.keys):
        alive = redis.user_of(used, WATCH_SECONDS) if redis else ""
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
        if not alive and listing(root, layout) != before:
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


def _ask_store(left: Left, pipeline: Pipeline) -> Left:
    """Add which of the archives, and of the files that may be stored, are in the store."""
    doubtful = [one for one in left.directories if one.maybe_stored]
    if not doubtful and not left.archives:
        return left
    times = [file.changed_at for one in doubtful for file in one.files]
    times += [one.path.stat().st_mtime for one in left.archives]
    names = [one.path.name for one in left.archives]
    stored = StoredArchives.find(pipeline, pipeline.store.open(), names, since=min(times))
    archives = tuple(
        replace(one, stored_as=stored.holding(one.path.name, one.path)) for one in left.archives
    )
    contents: Mapping[Content, str] = {}
    if doubtful or any(not one.stored_as and one.members for one in archives):
        contents = stored.newest_contents()
    return replace(left, archives=archives, stored=contents, stored_looked_at=stored.looked_at)


def _open_below(root: Path, layout: Layout) -> str:
    """A process with a file of FUploader's open, in words; empty if there is none we may see."""
    for pid, target in _open_files():
        if root not in target.parents or layout.root in target.parents:
            continue
        first = target.relative_to(root).parts[0]
        if pid != os.getpid() and (is_of_fuploader(first) or is_archive(first)):
            return f"process {pid} has {target} open"
    return ""


def _open_files() -> Iterator[tuple[int, Path]]:
    """Process and file, for everything open on this machine that we may see."""
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with suppress(OSError):  # it ended meanwhile, or belongs to another user
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    yield int(process.name), link.readlink()
