"""A folder on a journalled ext4: the machine's own disk, or a loop file where that has no journal.

Figures from a file system without a journal are worthless here: a commit that waits for a journal
costs what it costs in production, and creating files slows many times over where others were
deleted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SBIN = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LANG": "C"}
_LEAST_BYTES = 4 << 30
_SPARE_BYTES = 4 << 30
"""Left free on the disk below the loop file."""


@dataclass(frozen=True)
class Disk:
    """Where all data of a run is."""

    folder: Path
    description: str
    journalled: bool


@contextmanager
def journalled_folder(base: Path, size_gib: int) -> Iterator[Disk]:
    """A new, empty folder below `base`; it is gone afterwards."""
    base = base.absolute()
    with tempfile.TemporaryDirectory(prefix="fuploader-bench-", dir=base) as made:
        top = Path(made)
        if _has_journal(top):
            yield Disk(top, f"ext4 with a journal, the machine's own ({_source_of(top)})", True)
            return
        folder = top / "disk"
        folder.mkdir()
        problem = _mount_loop(top / "image", folder, size_gib)
        if problem:
            description = f"{_type_of(top)} without a journal; no loop file: {problem}"
            yield Disk(folder, description, False)
            return
        try:
            yield Disk(folder, "ext4 with a journal, on a loop file", True)
        finally:
            _run("umount", "--lazy", str(folder))


def _mount_loop(image: Path, folder: Path, size_gib: int) -> str:
    """What went wrong; empty if the loop file is mounted."""
    size = min(size_gib << 30, shutil.disk_usage(image.parent).free - _SPARE_BYTES)
    if size < _LEAST_BYTES:
        return f"too little space: {_LEAST_BYTES + _SPARE_BYTES:,} bytes must be free"
    with image.open("wb") as file:
        file.truncate(size)
    for command in (
        # All of it now: filled in later, it would keep the disk busy during the measurements.
        ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)],
        ["mount", "-o", "loop", str(image), str(folder)],
    ):
        problem = _run(*command)
        if problem:
            return f"{command[0]}: {problem}"
    return ""


def _run(*command: str) -> str:
    """Run it; returns its message if it failed."""
    try:
        done = subprocess.run(command, env=_SBIN, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "the program is not installed"
    if done.returncode == 0:
        return ""
    return done.stderr.strip() or f"exit code {done.returncode}"


def _has_journal(folder: Path) -> bool:
    """True only where it is known: an ext4 whose feature list has the journal."""
    if _type_of(folder) != "ext4":
        return False
    try:
        said = subprocess.run(
            ["dumpe2fs", "-h", _source_of(folder)],
            env=_SBIN,
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    except FileNotFoundError:
        return False
    return "has_journal" in said


def _type_of(folder: Path) -> str:
    return _mount_of(folder)[1]


def _source_of(folder: Path) -> str:
    return _mount_of(folder)[0]


def _mount_of(folder: Path) -> tuple[str, str]:
    """Device and type of the file system of a folder."""
    found = ("unknown", "unknown")
    longest = -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, point, kind = line.split()[:3]
        if folder.is_relative_to(point) and len(point) >= longest:
            found, longest = (source, kind), len(point)
    return found
