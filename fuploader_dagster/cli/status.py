"""The command `status`: what the pipelines are doing, and what waits or failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuploader_dagster.cli import console
from fuploader_dagster.contracts.source import Depth
from fuploader_dagster.health.status import status_of
from fuploader_dagster.intake.disk_space import DiskSpace

_SINK_FIGURES = ("stored_slots", "rows", "rejected_items", "owed_slots", "failing_slots")


def status(
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Show what the pipelines are doing, and what waits or failed."""
    found = [status_of(pipeline) for pipeline in console.chosen_pipelines(config, pipeline_name)]
    if as_json:
        console.print_json(found)
        return
    for one in found:
        _print_status(one)


def _print_queue(found: dict[str, Any]) -> None:
    depth: Depth | None = found["depth"]
    if depth is None:
        console.say(f"the queue cannot be asked how much waits: {found['trouble']}")
        return
    in_hand = "" if depth.in_hand is None else f", {depth.in_hand:,} are in hand"
    console.say(f"{found['queue']}: {depth.waiting:,} messages wait{in_hand}")
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


def _print_status(found: dict[str, Any]) -> None:
    console.say(
        f"{found['pipeline']} on {found['node']}: {found['stored_messages']:,} "
        f"messages stored, {found['duplicates']:,} duplicates, {found['dead_letters']:,} dead "
        f"letters, {found['sealed']:,} slots sealed and not yet in the object store"
    )
    _print_judgements(found["judgements"])
    for part in found["parts"].values():
        if part["sentence"]:
            console.say(f"{part['sentence']}; on this node it {part['actual']}")
    _print_queue(found["queue"])
    if found["failed_items"]:
        console.say(f"{found['failed_items']:,} files could not be processed and are dead letters")
    if found["processor_trouble"]:
        console.say(found["processor_trouble"])
    if found["processed"]:
        console.say(f"{found['processed']:,} of them are processed, or being processed")
    for partition in found["redos"]:
        console.say(
            f"{partition} is being processed again; if no run does it, a new run continues it"
        )
    space: DiskSpace = found["room"]
    inodes = "" if space.free_inodes is None else f" and {space.free_inodes:,} inodes"
    console.say(
        f"{space.unshipped_bytes:,} bytes are not in the object store yet; the disk has "
        f"{space.free_bytes:,} bytes{inodes} free"
    )
    console.show_table(
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
            f"{one['notifier']}: {one['waiting_tasks']:,} tasks wait to be told, "
            f"{one['given_up_tasks']:,} were given up"
        )
        if problem := one["trouble"] or one["last_given_up"]:
            console.say(problem)
    for one in found["failures"]:
        console.say(f"{one.partition} failed to {one.stage} {one.attempts} times: {one.error}")
    for mended in found["mended"]:
        console.say(f"damaged: {mended['sentence']}")
    for path in found["set_aside"]:
        console.say(
            f"damaged: {path} was moved there; the log says which of its messages are stored"
        )
