"""What is not recognised is moved to `set-aside/`, whatever it is, and never deleted.

Its name there says when it was found and where: `{nanoseconds}-{its path, joined by dashes}`.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from fuploader_dagster.fileio import rename_durably
from fuploader_dagster.layout import Layout
from fuploader_dagster.steps import Step, reached
from fuploader_dagster.temporaries import MAX_NAME_BYTES

log = logging.getLogger(__name__)


def set_aside(path: Path, layout: Layout) -> Path:
    """Move a file or folder below the pipeline's root out of the way; returns where it is now."""
    _, *parts = path.relative_to(layout.root).parts  # without "active" or "sealed"
    name = os.fsencode(f"{time.time_ns()}-{'-'.join(parts)}")[:MAX_NAME_BYTES]
    target = layout.set_aside / name.decode("utf-8", "ignore")
    rename_durably(path, target)
    reached(Step.SET_ASIDE)
    log.warning("%s was not recognised and was moved to %s", path, target)
    return target
