"""Several pipelines, and FUploader's directories in a folder that more than one of them looks at.

What must always hold: a directory of FUploader's goes to the pipeline it was meant for, and no
pipeline's folder is ever taken for one of FUploader's. Nothing below FUploader's storage root says
which task wrote there. So if that is not clear, the take-over is refused, and the error names the
settings that make it clear.
"""

from __future__ import annotations

from collections.abc import Iterable

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.intake.leftovers import is_of_fuploader, left_in_folder, root_of
from fuploader_dagster.settings.apart import real_path
from fuploader_dagster.settings.pipeline import Pipeline


def refuse_rivals(pipeline: Pipeline, pipelines: Iterable[Pipeline]) -> None:
    """Raise `ConfigError` if it is not clear that `pipeline` alone takes over what is there.

    `pipelines`: all of the configuration.
    """
    root = real_path(root_of(pipeline))
    others = [other for other in pipelines if other.name != pipeline.name]
    for other in others:
        folder = real_path(other.layout.root)
        if folder.parent == root and is_of_fuploader(folder.name):
            raise ConfigError(
                f"the folder of pipeline {other.name} is {other.layout.root}, a name that "
                f"FUploader uses, where pipeline {pipeline.name} takes over what FUploader left",
                hint="give that pipeline another name or storage_root, or set `takeover.root` or "
                f"`takeover: {{enabled: false}}` for {pipeline.name}",
            )
    rivals = [one for one in others if one.takeover.enabled and real_path(root_of(one)) == root]
    if rivals and left_in_folder(pipeline):
        names = " and ".join([pipeline.name, *(one.name for one in rivals)])
        raise ConfigError(
            f"the pipelines {names} would all take over what FUploader left in {root}, and "
            f"nothing there says whose task it was",
            hint="set `takeover: {enabled: false}` for all but the one whose task it was; or "
            "`takeover.root` for each, where each task had a storage_root of its own",
        )
