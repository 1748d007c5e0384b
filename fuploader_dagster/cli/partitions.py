"""The command `partitions`: the slots of a pipeline and how far each is, newest first."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import islice
from typing import Annotated

import typer

from fuploader_dagster.cli import console, words
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.lookup.listed import Listed, listed

STATES = ("sealed", "processed", "packed", "stored", "failed")
SHOWN = 50


def partitions(
    state: Annotated[
        str | None, typer.Option("--state", help=f"Only those that are {', '.join(STATES)}.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="How many of each pipeline; 0: all.")
    ] = SHOWN,
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """List the partitions of this node with their state, sizes and age: those on the disk, then the
    stored ones, each newest first.

    Reads only this machine's disk. `failed` are those whose last attempt failed.
    """
    if state is not None and state not in STATES:
        raise ConfigError(f"there is no state {state!r}", hint=console.choice(state, STATES))
    found: list[Listed] = []
    more = False
    for pipeline in console.chosen_pipelines(config, pipeline_name):
        fitting = (one for one in listed(pipeline) if _fits(one, state))
        taken = list(islice(fitting, limit + 1 if limit else None))
        more |= bool(limit) and len(taken) > limit
        found += taken[:limit] if limit else taken
    if as_json:
        console.print_json(found)
        return
    now = datetime.now(timezone.utc)
    console.show_table(
        ("pipeline", "partition", "state", "age", "messages", "size", "archive", "problem"),
        (
            (
                one.pipeline,
                one.partition,
                one.state,
                _age(one, now),
                f"{one.messages:,}",
                words.size(one.payload_bytes),
                "" if one.archive_bytes is None else words.size(one.archive_bytes),
                one.trouble.error if one.trouble else "",
            )
            for one in found
        ),
        none="no partition" + (f" is {state}" if state else ""),
    )
    if more:
        console.say(f"there are more than {limit:,}: --limit 0 shows all")


def _fits(one: Listed, state: str | None) -> bool:
    if state == "failed":
        return one.trouble is not None
    return state is None or one.state == state


def _age(one: Listed, now: datetime) -> str:
    if one.sealed_at is None:
        return ""
    return words.age((now - datetime.fromisoformat(one.sealed_at)).total_seconds())
