"""The command `status`: what the pipelines are doing, and what waits or failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import exit_code_of
from fuploader_dagster.cli.words import counted, size
from fuploader_dagster.contracts.source import Depth
from fuploader_dagster.health.judging import look as look_at
from fuploader_dagster.health.status import status_of
from fuploader_dagster.intake.disk_space import DiskSpace

_SINK_FIGURES = ("stored_slots", "rows", "rejected_items", "owed_slots", "failing_slots")


def status(
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Show what the pipelines are doing, and what waits or failed."""
    seen = [(one, look_at(one)) for one in console.chosen_pipelines(config, pipeline_name)]
    found = [status_of(*one) for one in seen]
    if as_json:
        console.print_json(found)
    else:
        for one in found:
            _print_status(one)
    troubles = [trouble for _, look in seen if (trouble := look.figures.state_trouble)]
    if troubles:
        raise typer.Exit(exit_code_of(troubles[0]))


def _print_queue(found: dict[str, Any]) -> None:
    depth: Depth | None = found["depth"]
    if depth is None:
        console.say(f"the queue cannot be asked how much waits: {found['trouble']}")
        return
    in_hand = "" if depth.in_hand is None else f", {depth.in_hand:,} in hand"
    waiting = counted(depth.waiting, "message waits", "messages wait")
    console.say(f"{found['queue']}: {waiting}{in_hand}")
    if depth.parts:
        console.show_table(
            ("part of the queue", "waiting", "next", "end"),
            (
                (one.name, f"{one.waiting:,}", _number(one.next), _number(one.end))
                for one in depth.parts
            ),
        )


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _print_judgements(judgements: Sequence[dict[str, Any]]) -> None:
    for one in judgements:
        if not one["passed"]:
            console.say(f"{one['check']}: {one['found']}. What to do: {one['hint']}")


def _print_counts(found: dict[str, Any]) -> None:
    trouble = found["state"]["trouble"]
    counts = (
        "nobody can say how many messages were stored"
        if trouble
        else f"{counted(found['stored_messages'], 'message')} stored, "
        f"{counted(found['duplicates'], 'duplicate')}, "
        f"{counted(found['dead_letters'], 'dead letter')}"
    )
    console.say(
        f"{found['pipeline']} on {found['node']}: {counts}, {counted(found['sealed'], 'slot')} "
        f"sealed and not yet in the object store"
    )
    if trouble:
        console.say(f"the state store cannot be asked: {trouble}")


def _print_status(found: dict[str, Any]) -> None:
    _print_counts(found)
    _print_judgements(found["judgements"])
    for part in found["parts"].values():
        if part["sentence"]:
            console.say(f"{part['sentence']}; on this node it {part['actual']}")
    _print_queue(found["queue"])
    if found["failed_items"]:
        said = (
            "file could not be processed and is a dead letter",
            "files could not be processed and are dead letters",
        )
        console.say(counted(found["failed_items"], *said))
    if found["processor_trouble"]:
        console.say(found["processor_trouble"])
    if found["processed"]:
        said = ("of them is processed, or being", "of them are processed, or being")
        console.say(f"{counted(found['processed'], *said)} processed")
    for partition in found["redos"]:
        console.say(
            f"{partition} is being processed again; if no run does it, a new run continues it"
        )
    space: DiskSpace = found["room"]
    inodes = "" if space.free_inodes is None else f" and {counted(space.free_inodes, 'inode')}"
    console.say(
        f"{size(space.unshipped_bytes)} are not in the object store yet; the disk has "
        f"{size(space.free_bytes)}{inodes} free"
    )
    shared = any(one.reads for one in found["workers"])
    console.show_table(
        (
            *("worker", "pid", "doing"),
            *(["reads"] if shared else []),
            *("messages/s", "messages", "problem"),
        ),
        (
            (
                f"{one.worker}",
                f"{one.pid}",
                one.doing,
                *([one.reads] if shared else []),
                f"{one.messages_per_second:,.0f}",
                f"{one.messages:,}",
                one.problem,
            )
            for one in found["workers"]
        ),
        none="no worker runs on this node",
    )
    if found["sinks"]:
        console.show_table(
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
    for one in found["notices"]:
        console.say(
            f"{one['notifier']}: "
            f"{counted(one['waiting_tasks'], 'task waits', 'tasks wait')} to be told, "
            f"{one['given_up_tasks']:,} given up"
        )
        if problem := one["trouble"] or one["last_given_up"]:
            console.say(problem)
    for one in found["failures"]:
        console.say(
            f"{one.partition} failed to {one.stage} {counted(one.attempts, 'time')}: {one.error}"
        )
    for mended in found["mended"]:
        console.say(f"damaged: {mended['sentence']}")
    for path in found["set_aside"]:
        console.say(
            f"damaged: {path} was moved there; the log says which of its messages are stored"
        )
