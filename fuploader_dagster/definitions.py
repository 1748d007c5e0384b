"""One place where the parts of a code location meet.

    defs = build_definitions(Pipeline(name="documents", source=..., state=..., store=...))

The result merges with other definitions: every name in it begins with the pipeline's.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from fuploader_dagster.assets.partitions import SHIP_TAG, Names
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.parts import Parts
from fuploader_dagster.resources.object_stores.resource import as_resource
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.takeover.rivals import refuse_rivals


def build_definitions(
    *pipelines: Pipeline, running: bool = True, parts: Parts | None = None
) -> dg.Definitions:
    """Assets, jobs, sensors, schedules and store resources of the pipelines.

    `running`: sensors and schedules are on as soon as Dagster loads them. `parts`: own ones in
    place of this package's. Raises `ConfigError` where two pipelines would share a name, a folder,
    or what FUploader left.
    """
    _check_apart(pipelines)
    refuse_rivals(pipelines)
    return dg.Definitions.merge(
        *(_definitions_of(pipeline, running, parts or Parts()) for pipeline in pipelines)
    )


def _definitions_of(pipeline: Pipeline, running: bool, parts: Parts) -> dg.Definitions:
    pipeline = pipeline.model_copy(update={"store": as_resource(pipeline.store)})
    names = Names.of(pipeline)
    assets: dg.AssetSelection = dg.AssetSelection.assets(
        names.packed_archive, names.uploaded_archive
    )
    if parts.reachable_check is not None:  # it costs no run
        assets -= dg.AssetSelection.checks(names.reachable_check)
    ship = dg.define_asset_job(
        names.ship_job,
        selection=assets,
        tags={SHIP_TAG: names.scope},
        executor_def=dg.in_process_executor,
        description="Packs sealed slots and uploads their archives.",
    )
    resources: dict[str, Any] = {names.store: pipeline.store}
    return dg.Definitions(
        assets=parts.all_assets(pipeline),
        asset_checks=parts.checks(pipeline),
        jobs=[ship, *parts.jobs(pipeline)],
        sensors=parts.sensors(pipeline, running=running),
        schedules=parts.schedules(pipeline, running=running),
        resources=resources,
    )


def _check_apart(pipelines: tuple[Pipeline, ...]) -> None:
    scopes = [Names.of(pipeline).scope for pipeline in pipelines]
    folders = [str(pipeline.layout.root) for pipeline in pipelines]
    for what, seen in (("name", scopes), ("folder", folders)):
        for one in sorted({each for each in seen if seen.count(each) > 1}):
            whose = [
                f"{pipeline.name} on node {pipeline.node!r}"
                for pipeline, each in zip(pipelines, seen, strict=True)
                if each == one
            ]
            raise ConfigError(
                f"two pipelines have the same {what} in Dagster, {one}: {', '.join(whose)}",
                hint="names begin with the pipeline's, '_' and the node's id; give each pipeline "
                "a name and each node an id of its own",
            )
