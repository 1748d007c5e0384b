"""Pipelines of one configuration keep apart: no two of them have the same folder, and what else two
of them share by mistake is said."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline


def refuse_shared_folders(pipelines: Iterable[Pipeline]) -> None:
    """Raise `ConfigError`, which names all, if two pipelines would write into one folder."""
    found = []
    owners: dict[Path, Pipeline] = {}
    for pipeline in pipelines:
        folder = pipeline.layout.root
        owner = owners.setdefault(real_path(folder), pipeline)
        if owner is not pipeline:
            said = f"pipelines {owner.name} and {pipeline.name} have the same folder, {folder}"
            hint = "give each pipeline a name of its own, or a storage_root of its own"
            found.append(ConfigError(said, hint=hint))
    if found:
        raise ConfigError.of(found)


def overlaps(pipelines: Iterable[Pipeline]) -> list[str]:
    """A sentence for each two pipelines that get in each other's way, though both can run."""
    found = []
    for one, two in combinations(pipelines, 2):
        names = f"pipelines {one.name} and {two.name}"
        if one.source == two.source:
            found.append(
                f"{names} drain the same queue, {one.source.describe()}: each message goes to one "
                f"of the two, by chance. Give each a queue of its own, or a group where there are "
                f"groups"
            )
        named_apart = isinstance(one.key, str) and "{pipeline}" in one.key
        if one.store == two.store and one.key == two.key and not named_apart:
            found.append(
                f"{names} store archives under the same keys in {one.store.describe()}. Let each "
                f"have a key of its own; {{pipeline}} in it is the pipeline's name"
            )
    return found


def real_path(path: Path) -> Path:
    """The path without links, if there can be such a path."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a ring, a null byte
        return path
