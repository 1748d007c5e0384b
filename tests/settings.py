"""Settings for tests: embedded parts in a temporary folder, small limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuploader_dagster.config import Intake
from fuploader_dagster.resources.embedded import EmbeddedQueue
from fuploader_dagster.resources.sqlite_state import SqliteState


def intake(folder: Path, **values: Any) -> Intake:
    """An `Intake` named `docs` on embedded parts below the folder."""
    return Intake(
        **{
            "name": "docs",
            "storage_root": folder / "data",
            "source": EmbeddedQueue(path=folder / "queue"),
            "state": SqliteState(path=folder / "state.sqlite"),
            **values,
        }
    )
