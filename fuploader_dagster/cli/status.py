"""The command `status`: what the pipelines are doing, and what waits or failed."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import msgspec

from fuploader_dagster.cli.console import (
    ConfigOption,
    JsonOption,
    OnlyPipelineOption,
    chosen_pipelines,
    print_json,
    say,
    show_table,
)
from fuploader_dagster.dead_letters.counts import counts_path, read_worker_counts
from fuploader_dagster.dead_letters.letters import PROCESSING_WRITER
from fuploader_dagster.delivery.all_rows import stored_here
from fuploader_dagster.delivery.failures import all_failures
from fuploader_dagster.delivery.mend import all_mended
from fuploader_dagster.delivery.owed_rows import look_at
from fuploader_dagster.delivery.processor_trouble import processor_trouble_of
from fuploader_dagster.delivery.redo import redos
from fuploader_dagster.delivery.sink_notes import SinkNotes, all_sinks
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.intake.disk_space import DiskSpace, Unshipped, space_of
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import sealed_partitions

_SINK_FIGURES = ("stored_slots", "rows", "rejected_items", "owed_slots", "failing_slots")


def status(
    config: ConfigOption = None,
    pipeline_name: OnlyPipelineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the pipelines are doing, and what waits or failed."""
    found = [_status_of(pipeline) for pipeline in chosen_pipelines(config, pipeline_name)]
    if as_json:
        print_json(found)
        return
    for one in found:
        _print_status(one)


def _status_of(pipeline: Pipeline) -> dict[str, Any]:
    with closing(pipeline.state.store(pipeline=pipeline.name, node=pipeline.node)) as state:
        state.open()
        snapshot = state.snapshot()
    return {
        "pipeline": pipeline.name,
        "node": pipeline.node,
        "workers": read_statuses(pipeline.layout),
        "slots": list(snapshot.slots),
        "sealed": len(sealed_partitions(pipeline.layout)),
        "processed": len(pipeline.layout.processed_numbers()),
        "redos": redos(pipeline.layout),
        "room": space_of(pipeline.storage_root.absolute(), Unshipped(pipeline.layout).bytes()),
        "stored_messages": snapshot.stored_messages,
        "duplicates": snapshot.duplicates,
        "dead_letters": snapshot.dead_letters,
        "failed_items": _failed_items(pipeline.layout),
        "processor_trouble": str(processor_trouble_of(pipeline) or ""),
        "sinks": [_sink_status(notes, pipeline) for notes in all_sinks(pipeline)],
        "failures": list(all_failures(pipeline.layout)),
        "mended": [
            {**msgspec.to_builtins(one), "sentence": one.sentence(pipeline.layout)}
            for one in all_mended(pipeline.layout)
            if (pipeline.layout.root / one.set_aside).exists()
        ],
    }


def _sink_status(notes: SinkNotes, pipeline: Pipeline) -> dict[str, Any]:
    stored = notes.receipts.between()
    kept = stored_here(pipeline) if pipeline.sinks[notes.sink].required else ()
    found = look_at(notes, kept)
    last = max(found.failures.values(), key=lambda one: one.failed_at, default=None)
    return {
        "sink": notes.sink,
        "target": pipeline.sinks[notes.sink].describe(),
        "stored_slots": len(stored),
        "rows": sum(one.rows for one in stored.values()),
        "rejected_items": sum(one.rejected for one in stored.values()),
        "owed_slots": len(found.owed),
        "failing_slots": len(found.failures),
        "trouble": str(found.trouble or ""),
        "last_error": last.error if last is not None else "",
    }


def _failed_items(layout: Layout) -> int:
    return read_worker_counts(counts_path(layout, PROCESSING_WRITER)).total


def _print_status(found: dict[str, Any]) -> None:
    say(
        f"{found['pipeline']} on {found['node']}: {found['stored_messages']:,} "
        f"messages stored, {found['duplicates']:,} duplicates, {found['dead_letters']:,} dead "
        f"letters, {found['sealed']:,} slots sealed and not yet in the object store"
    )
    if found["failed_items"]:
        say(f"{found['failed_items']:,} files could not be processed and are dead letters")
    if found["processor_trouble"]:
        say(found["processor_trouble"])
    if found["processed"]:
        say(f"{found['processed']:,} of them are processed, or being processed")
    for partition in found["redos"]:
        say(f"{partition} is being processed again; if no run does it, a new run continues it")
    space: DiskSpace = found["room"]
    inodes = "" if space.free_inodes is None else f" and {space.free_inodes:,} inodes"
    say(
        f"{space.unshipped_bytes:,} bytes are not in the object store yet; the disk has "
        f"{space.free_bytes:,} bytes{inodes} free"
    )
    show_table(
        ("worker", "pid", "doing", "messages/s", "messages", "problem"),
        (
            (
                f"{one.worker}",
                f"{one.pid}",
                one.doing,
                f"{one.messages_per_second:,.0f}",
                f"{one.messages:,}",
                one.problem,
            )
            for one in found["workers"]
        ),
    )
    if found["sinks"]:
        show_table(
            ("sink", "stored slots", "rows", "rejected items", "owed slots", "failing", "problem"),
            (
                (
                    one["sink"],
                    *(f"{one[name]:,}" for name in _SINK_FIGURES),
                    one["trouble"] or one["last_error"],
                )
                for one in found["sinks"]
            ),
        )
    for one in found["failures"]:
        say(f"{one.partition} failed to {one.stage} {one.attempts} times: {one.error}")
    for mended in found["mended"]:
        say(f"damaged: {mended['sentence']}")
