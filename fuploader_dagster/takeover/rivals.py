"""Several pipelines, and FUploader's directories in a folder that more than one of them looks at.

What must always hold: a directory of FUploader's goes to the pipeline that somebody meant, and no
pipeline's folder is ever taken for one of FUploader's. Nothing below its storage root says whose
task it was, so where it is not clear loading is refused with the settings that make it clear.
Pipelines that share a folder in which nothing of FUploader's lies are no rivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.takeover.folders import is_flat, is_left_in, is_of_fuploader, root_of


def refuse_rivals(pipelines: Sequence[Pipeline]) -> None:
    """Raise `ConfigError` where it is not clear which pipeline takes over what lies there."""
    looking: dict[Path, list[Pipeline]] = {}
    for pipeline in pipelines:
        if pipeline.takeover.enabled:
            looking.setdefault(_real(root_of(pipeline)), []).append(pipeline)
    for root, heirs in looking.items():
        # A pipeline on its own finds out about its name when it takes over.
        others = [one for one in pipelines if heirs != [one]]
        misnamed = [one for one in others if _is_named_alike(_real(one.layout.root), root)]
        if len(heirs) == 1 and not misnamed:
            continue
        left = _is_anything_left(heirs)
        for other in misnamed:
            if left or is_flat(other.name):
                raise ConfigError(
                    f"the folder of pipeline {other.name} is {other.layout.root}, a name that "
                    f"FUploader uses, where {_listed(heirs)} would take over what FUploader left",
                    hint="give the pipeline another name or storage_root, or set `takeover.root` "
                    "or `takeover: {enabled: false}` for the others",
                )
        if left and len(heirs) > 1:
            raise ConfigError(
                f"{_listed(heirs)} would all take over what FUploader left in {root}, and "
                f"nothing there says whose task it was",
                hint="set `takeover: {enabled: false}` for all but the one whose task it was; or "
                "`takeover.root` for each, where each task had a storage_root of its own",
            )


def _is_named_alike(folder: Path, root: Path) -> bool:
    return folder.parent == root and is_of_fuploader(folder.name)


def _is_anything_left(heirs: Sequence[Pipeline]) -> bool:
    with suppress(OSError):  # who cannot read it says so when it takes over
        return any(is_left_in(root_of(heir), heir.layout) for heir in heirs)
    return False


def _real(path: Path) -> Path:
    """The path without links, if there can be such a path."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a ring, a null byte
        return path


def _listed(pipelines: Sequence[Pipeline]) -> str:
    names = [one.name for one in pipelines]
    return f"the pipelines {' and '.join(names)}" if len(names) > 1 else f"the pipeline {names[0]}"
