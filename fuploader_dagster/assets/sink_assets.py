"""The assets of a pipeline's sinks: `sink_rows` for a sink that is called `rows`, and so on.

A run that ships stores rows too, in a step for each sink: one that fails fails the run, and stops
neither its uploads nor the other sinks. While it is known that a sink takes nothing, only runs of
just that sink try: those of the recovery schedule, and a person's. In all others its step does
nothing, and what it skipped is owed.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

from collections.abc import Iterator
from typing import Any

import dagster as dg

from fuploader_dagster.assets.outcomes import ended_by_interrupts
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.assets.pipeline_assets import UNFINISHED, Step, is_redo, made, quietly
from fuploader_dagster.assets.run_machine import note_machine
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.rows import store_partitions
from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.settings.pipeline import Pipeline


def build_sink_assets(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """An asset for each sink of a pipeline, in the order of the settings."""
    with quietly():
        return [_sink_asset(pipeline, name) for name in pipeline.sinks]


def _sink_asset(pipeline: Pipeline, name: str) -> dg.AssetsDefinition:
    names, settings = Names.of(pipeline), pipeline.sinks[name]
    asset = names.sink(name)

    @made(
        pipeline,
        asset,
        made_of=names.processed_slot if pipeline.process is not None else names.sealed_slot,
        kind=type(settings).__name__.removesuffix("Sink").lower() or "sink",
        description=f"Rows of each slot, stored once: {settings.describe()}",
        pool=settings.pool,
        slots=settings.partitions_per_run,
    )
    def sink(context: dg.AssetExecutionContext) -> Iterator[Any]:
        note_machine(context)
        trouble = SinkNotes(pipeline.layout, name).trouble
        if trouble is not None and not _is_tried(context, names):
            context.log.warning(f"Rows wait, and nothing is lost: {trouble}")
            return
        with ended_by_interrupts(UNFINISHED):
            outcomes = store_partitions(
                context.partition_keys,
                pipeline,
                name,
                ArchiveFinder({pipeline.name: pipeline}).open,
                redo=is_redo(context),
            )
            yield from Step(context, pipeline, outcomes).report(asset)

    return sink


def _is_tried(context: dg.AssetExecutionContext, names: Names) -> bool:
    """Whether this step tries though the sink is known to take nothing: a run of just sinks does,
    and an attempt after one that found the trouble."""
    selection = context.run.asset_selection
    return context.retry_number > 0 or bool(selection and all(map(names.is_sink, selection)))
