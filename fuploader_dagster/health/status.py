"""What a pipeline is doing, and what waits or failed: for `fuploader status`, without Dagster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from fuploader_dagster.contracts.notifier import NotifierSettings
from fuploader_dagster.control.wishes import PARTS, Part, Wishes
from fuploader_dagster.dead_letters.counts import counts_path, read_worker_counts
from fuploader_dagster.dead_letters.letters import PROCESSING_WRITER
from fuploader_dagster.delivery.failures import all_failures
from fuploader_dagster.delivery.mended import damaged_aside
from fuploader_dagster.delivery.notice_files import NoticeFiles, all_notice_files
from fuploader_dagster.delivery.owed_rows import look_at, stored_here
from fuploader_dagster.delivery.processor_trouble import processor_trouble_of
from fuploader_dagster.delivery.sink_notes import SinkNotes, all_sinks
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.temporaries import is_held
from fuploader_dagster.health.figures import Queue
from fuploader_dagster.health.judging import Judgement, Look, judge, look
from fuploader_dagster.intake.worker_status import WorkerStatus
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import sealed_partitions


def status_of(pipeline: Pipeline, seen: Look | None = None) -> dict[str, Any]:
    """What `fuploader status --json` prints of a pipeline; msgspec encodes it. Makes no file.

    A queue or state store that does not answer is named, and hides nothing else.
    """
    layout = pipeline.layout
    seen = seen or look(pipeline)
    mended, others = damaged_aside(layout)
    figures, snapshot = seen.figures, seen.figures.snapshot
    wishes, workers = figures.wishes, figures.workers
    return {
        "pipeline": pipeline.name,
        "node": pipeline.node,
        "workers": workers,
        "parts": {part: part_status(part, wishes, workers, layout) for part in PARTS},
        "judgements": [_judgement(one) for one in judge(pipeline, seen)],
        "queue": _queue_status(pipeline, figures.queue),
        "state": {
            "state": pipeline.state.describe(),
            "trouble": str(figures.state_trouble or ""),
        },
        "slots": list(snapshot.slots) if snapshot else None,
        "sealed": len(sealed_partitions(layout)),
        "processed": len(layout.processed_numbers()),
        "redos": layout.redos(),
        "room": figures.space,
        "stored_messages": snapshot and snapshot.stored_messages,
        "duplicates": snapshot and snapshot.duplicates,
        "dead_letters": snapshot and snapshot.dead_letters,
        "failed_items": read_worker_counts(counts_path(layout, PROCESSING_WRITER)).total,
        "processor_trouble": str(processor_trouble_of(pipeline) or ""),
        "sinks": [_sink_status(notes, pipeline) for notes in all_sinks(pipeline)],
        "notices": [_notices_status(*one) for one in all_notice_files(pipeline)],
        "failures": list(all_failures(layout)),
        "mended": [
            {**msgspec.to_builtins(one), "sentence": one.sentence(layout)} for one in mended
        ],
        "set_aside": [str(path) for path in others],
    }


def part_status(
    part: Part, wishes: Wishes, workers: Sequence[WorkerStatus], layout: Layout
) -> dict[str, Any]:
    """What is wanted of intake or shipping, and what it does on this node."""
    wish = wishes.of(part)
    busy = _drains(workers) if part == "intake" else ships(layout)
    return {
        "wanted": "paused" if wish.paused else "runs",
        "actual": "works" if busy else "stands still",
        "since": wish.at / 1e6 if wish.at else None,
        "by": wish.by,
        "reason": wish.reason,
        "sentence": f"{part} is paused {wish}" if wish.paused else "",
    }


def _drains(workers: Sequence[WorkerStatus]) -> bool:
    """Whether a worker takes messages."""
    now = time.time()
    return any(one.drains(now) for one in workers)


def ships(layout: Layout) -> bool:
    """Whether a process works on a sealed slot."""
    if not layout.locks.is_dir():
        return False
    locks = [path for path in layout.locks.iterdir() if PartitionKey.parse(path.stem)]
    return any(is_held(path) for path in locks)


def _notices_status(settings: NotifierSettings, files: NoticeFiles) -> dict[str, Any]:
    given_up = files.given_up
    return {
        "notifier": settings.describe(),
        "waiting_tasks": len(files.ends()),
        "given_up_tasks": given_up.tasks,
        "last_given_up": given_up.reason,
        "trouble": str(files.trouble or ""),
    }


def _queue_status(pipeline: Pipeline, queue: Queue) -> dict[str, Any]:
    """What waits in the queue."""
    return {
        "queue": pipeline.source.describe(),
        "depth": queue.depth,
        "trouble": queue.trouble,
    }


def _judgement(one: Judgement) -> dict[str, Any]:
    return {
        "check": one.check,
        "passed": one.passed,
        "serious": one.serious,
        "found": one.found,
        "hint": one.hint,
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
