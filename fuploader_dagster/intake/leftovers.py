"""What FUploader left, recognised by its names: while it is there, the pipeline does not start.

What must always hold: the look changes nothing and reads no file. Only names of FUploader's own
forms count: in its flat layout it writes right into the storage root, beside what others keep
there. Once a process has found a pipeline clean it does not look again, so a tick pays nothing.

Why a pipeline must not start: what FUploader wrote but did not acknowledge comes again from the
queue. The drain knows a redelivery only if those files are sealed slots already, and
`fuploader migrate` makes them so. It writes the journal `taken-over.jsonl`. From then on the keys
in Redis no longer count: those that are still there belong to another task or node.

FUploader's names below its storage root are listed in `takeover.plan`, its keys in
`takeover.former_redis`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.temporaries import is_temporary
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import MigrationNeeded, StateRefused, StateUnavailable
from fuploader_dagster.settings.pipeline import Pipeline

ADOPTED_SLOT = 9999
"""Adopted directories are sealed as of this slot, which no worker owns."""
FoundAs = Literal["active", "sealed", "flat", "pool", "loose"]
"""Where a directory is in FUploader's layouts."""
POOL = ".pool"
SLOT_DIR = re.compile(r"slot-\d+")
NUMBERED_DIR = re.compile(r"dir-\d+")
_FLAT_DIR = re.compile(r"slot_\d+_\d+|dir-\d{6,}")
"""After a recovery with keys of style `legacy_meta`, its flat layout has `dir-000001` too."""
_ARCHIVE = re.compile(
    r"(slot_\d+_\d+|dir-\d+|\d{8}_\d{6}_\d{6}_[0-9a-f]{8})(\.[A-Za-z0-9]{1,10}){1,3}"
)
"""Named after its directory or by the time; a user's own packer may give other endings."""
_WORKER_SUFFIX = re.compile(r"-(meta|packer)-p.*")
_KEYS = ("slot:0:active_dir", "sealed_ready", "slot:0", "queue:ready", "runtime:initialized")
"""FUploader has at least one of these under its prefix, in either style."""
_clean: set[Path] = set()
"""Folders of pipelines that this process found clean."""


def refuse_leftovers(pipeline: Pipeline) -> None:
    """Raise `MigrationNeeded` while something of FUploader's is in the pipeline's folder or Redis.

    Does not wait for a Redis that does not answer: the drain meets the same trouble and reports it.
    """
    folder = pipeline.layout.root
    if not pipeline.takeover.enabled or folder in _clean:
        return
    try:
        found = what_is_left(pipeline)
    except (StateUnavailable, StateRefused):
        return
    if found:
        raise MigrationNeeded(
            f"pipeline {pipeline.name} cannot start: FUploader left {found}",
            hint=f"stop FUploader and run `fuploader migrate --pipeline {pipeline.name}`; if that "
            "belongs to another pipeline, set `takeover: {enabled: false}`",
        )
    _clean.add(folder)


def what_is_left(pipeline: Pipeline) -> str:
    """Something that is left to take over, in words; empty if nothing is.

    Raises `StateUnavailable` and `StateRefused` if Redis has to be asked and cannot be.
    """
    return str(left_in_folder(pipeline) or "") or _left_in_redis(pipeline)


def _left_in_redis(pipeline: Pipeline) -> str:
    if journal(pipeline.layout).exists():
        return ""
    prefixes = key_prefixes(pipeline)
    keys = [prefix + name for prefix in prefixes for name in _KEYS]
    if not pipeline.state.in_a_hurry().holds_any(keys):
        return ""
    return f"keys that begin with {' or '.join(prefixes)} in {pipeline.state.describe()}"


def left_in_folder(pipeline: Pipeline) -> Path | None:
    """Something of FUploader's, or of an interrupted take-over; None if nothing is left."""
    root, layout = root_of(pipeline), pipeline.layout
    with naming_disk_trouble(root):
        if (staged := adopting(layout)).is_dir():
            return staged
        directories = (path for path, _ in directories_in(root, layout))
        return next(directories, None) or next(archives_in(root, layout), None)


def root_of(pipeline: Pipeline) -> Path:
    """FUploader's storage root."""
    return (pipeline.takeover.root or pipeline.storage_root).absolute()


def adopting(layout: Layout) -> Path:
    """Where a take-over stages directories before they become sealed slots."""
    return layout.root / "adopting" / f"slot-{ADOPTED_SLOT}"


def journal(layout: Layout) -> Path:
    """What was taken over, a line for each directory or archive."""
    return layout.root / "taken-over.jsonl"


def is_flat(name: str) -> bool:
    """Whether FUploader gives such a name to a directory with files right in its storage root."""
    return bool(_FLAT_DIR.fullmatch(name))


def is_of_fuploader(name: str) -> bool:
    """Whether FUploader gives such a name to a directory in its storage root."""
    return name in ("active", "sealed") or is_flat(name)


def is_archive(name: str) -> bool:
    """Whether FUploader gives such a name to an archive."""
    return bool(_ARCHIVE.fullmatch(name))


def is_loose(path: Path) -> bool:
    """Whether it is a file beside the directories of a slot, but no archive."""
    return not path.is_dir() and not is_archive(path.name)


def directories_in(root: Path, layout: Layout) -> Iterator[tuple[Path, FoundAs]]:
    """FUploader's directories of both layouts, except the pipeline's own folder."""
    for path in children(root):
        if path == layout.root:
            continue
        if path.is_dir() and not path.is_symlink() and is_flat(path.name):
            yield path, "flat"
    kinds: tuple[FoundAs, FoundAs] = ("active", "sealed")
    for kind in kinds:
        for path in children(root / kind):
            if path.name == POOL and path.is_dir():
                yield path, "pool"
            if not (SLOT_DIR.fullmatch(path.name) and path.is_dir()):
                continue
            for inner in children(path):
                if inner.is_dir() and not inner.is_symlink() and NUMBERED_DIR.fullmatch(inner.name):
                    yield inner, kind
            if any(is_loose(inner) for inner in children(path)):
                yield path, "loose"


def archives_in(root: Path, layout: Layout) -> Iterator[Path]:
    """Archives that FUploader left beside its directories."""
    folders = [root, *(root / "sealed" / path.name for path in children(root / "sealed"))]
    for folder in folders:
        if folder == layout.root or (folder != root and not SLOT_DIR.fullmatch(folder.name)):
            continue
        for path in children(folder):
            if is_archive(path.name) and path.is_file() and not path.is_symlink():
                yield path


def children(folder: Path) -> list[Path]:
    """What is in a folder, without our temporary names; nothing if it is a link."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if not is_temporary(path.name))


def key_prefixes(pipeline: Pipeline) -> list[str]:
    """What FUploader's keys for this task on this machine can begin with, in both styles."""
    former = pipeline.takeover
    task = former.task_name or pipeline.name
    nodes = [former.node_id] if former.node_id else [pipeline.node_id or "", _default_node()]
    scopes = dict.fromkeys(_WORKER_SUFFIX.sub("", node) for node in nodes if node)
    found = [f"{task}:meta:{scope}:" for scope in scopes]
    return [*found, former.key_prefix] if former.key_prefix else found


def _default_node() -> str:
    """The name that FUploader gives this machine, after its address, if no node is set."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("8.8.8.8", 80))  # sends nothing
        return f"node_id-{probe.getsockname()[0]}"
    with suppress(OSError):
        return f"node_id-{socket.gethostbyname(socket.gethostname())}"
    return "node_id-127.0.0.1"
