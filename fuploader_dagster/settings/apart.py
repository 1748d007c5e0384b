"""Pipelines of one configuration keep apart: no two of them have the same folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline


def refuse_shared_folders(pipelines: Iterable[Pipeline]) -> None:
    """Raise `ConfigError` if two pipelines would write into one folder."""
    owners: dict[Path, Pipeline] = {}
    for pipeline in pipelines:
        folder = pipeline.layout.root
        owner = owners.setdefault(real_path(folder), pipeline)
        if owner is not pipeline:
            raise ConfigError(
                f"pipelines {owner.name} and {pipeline.name} have the same folder, {folder}",
                hint="give each pipeline a name of its own, or a storage_root of its own",
            )


def real_path(path: Path) -> Path:
    """The path without links, if there can be such a path."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a ring, a null byte
        return path
