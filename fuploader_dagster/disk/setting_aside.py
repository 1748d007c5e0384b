"""Whatever is damaged or not recognised is moved to `set-aside/`, and never deleted.

Its name there says when and where it was found: `{nanoseconds}-{its path, joined by dashes}`,
without `active` or `sealed` in front.
"""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import rename_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.temporaries import MAX_NAME_BYTES

log = logging.getLogger(__name__)

_DIRECTORY = re.compile(r"[0-9]+-slot-[0-9]+-dir-[0-9]+")


def place_aside(path: Path, layout: Layout) -> Path:
    """The place to which a file or folder below the pipeline's root would be moved now."""
    parts = path.relative_to(layout.root).parts
    if parts[0] in ("active", "sealed"):
        parts = parts[1:] or parts
    name = os.fsencode(f"{time.time_ns()}-{'-'.join(parts)}")[:MAX_NAME_BYTES]
    return layout.set_aside / name.decode("utf-8", "ignore")


def directories_aside(layout: Layout) -> list[Path]:
    """Active and sealed directories that are in set-aside/, the oldest first."""
    return sorted(
        path
        for path in layout.set_aside.glob("*")
        if _DIRECTORY.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )


def set_aside(path: Path, layout: Layout, target: Path | None = None) -> Path:
    """Move a file or folder below the pipeline's root to set-aside/; returns where it is now.

    `target` is a place from `place_aside`, for a caller that had to note it first.
    """
    because = " was not recognised and" if target is None else ""
    target = target or place_aside(path, layout)
    rename_durably(path, target)
    reached(CrashPoint.SET_ASIDE)
    log.warning("%s%s was moved to %s", path, because, target)
    return target
