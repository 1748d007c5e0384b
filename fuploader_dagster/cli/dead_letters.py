"""`fuploader dead-letters`: look at messages that could not become files, and send them back."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fuploader_dagster.archives.restore_folder import Refused, RestoreFolder
from fuploader_dagster.cli.console import (
    ConfigOption,
    JsonOption,
    PipelineOption,
    complain,
    one_pipeline,
    say,
    show_table,
)
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.intake.dead_letters import (
    DeadLetter,
    numbered_dead_letters,
    requeue,
    requeued_ids,
)

SHOWN_REASON = 100
REQUEUE_BATCH = 500
REFUSED = 4

app = typer.Typer(
    no_args_is_help=True,
    help="Messages that could not become files: list, show, requeue, export.",
)

IdsArgument = Annotated[list[str] | None, typer.Argument(help="Ids as `list` shows them.")]
EveryOption = Annotated[bool, typer.Option("--all", help="Also those that were sent back.")]


@app.command(name="list")
def list_letters(
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    every: EveryOption = False,
    as_json: JsonOption = False,
) -> None:
    """List them, oldest first, and how often each reason occurs."""
    layout = one_pipeline(config, pipeline).layout
    letters = list(_waiting(layout, every=every))
    if as_json:
        rows = [
            {"id": letter_id, "time": letter.time, "reason": letter.reason}
            for letter_id, letter in letters
        ]
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
        return
    show_table(
        ("id", "time", "bytes", "reason"),
        (
            (letter_id, letter.time, f"{len(letter.body):,}", letter.reason[:SHOWN_REASON])
            for letter_id, letter in letters
        ),
    )
    for reason, count in Counter(letter.reason for _, letter in letters).most_common(10):
        say(f"{count:,} × {reason[:SHOWN_REASON]}")


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID")],
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    body: Annotated[bool, typer.Option("--body", help="The raw body alone.")] = False,
) -> None:
    """Show one whole: reason, headers and body."""
    layout = one_pipeline(config, pipeline).layout
    ((_, letter),) = _chosen(layout, [letter_id])
    content = letter.body if body else msgspec.json.format(msgspec.json.encode(letter)) + b"\n"
    sys.stdout.buffer.write(content)


@app.command(name="requeue")
def requeue_letters(
    ids: IdsArgument = None,
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    every: Annotated[bool, typer.Option("--all", help="All that wait here.")] = False,
) -> None:
    """Send them back to the queue, with headers and properties, confirmed by it.

    What the queue will not take stays here and is named; the exit code is then 4.
    """
    settings = one_pipeline(config, pipeline)
    if bool(ids) == every:
        raise ConfigError("name the letters to send back, or say --all")
    letters = list(_waiting(settings.layout)) if every else _chosen(settings.layout, ids or [])
    publisher = settings.source.publisher()
    sent, refused = 0, 0
    try:
        for start in range(0, len(letters), REQUEUE_BATCH):
            done = requeue(settings.layout, letters[start : start + REQUEUE_BATCH], publisher)
            sent += done.sent
            refused += len(done.refused)
            for letter_id, error in done.refused:
                complain(f"{letter_id} stays here: {error}")
    finally:
        publisher.close()
    say(f"sent {sent:,} messages back to {settings.source.describe()}")
    if refused:
        raise typer.Exit(REFUSED)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Gets a file of the raw body for each.")],
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    every: EveryOption = False,
) -> None:
    """Write the raw bodies into a folder; a file that is there already is left alone."""
    layout = one_pipeline(config, pipeline).layout
    written = refused = 0
    with RestoreFolder(folder) as target:
        for letter_id, letter in _waiting(layout, every=every):
            try:
                written += target.write(letter_id.replace(":", "-"), [memoryview(letter.body)])
            except Refused as error:
                refused += 1
                complain(f"left alone: {error.message}")
    say(f"wrote {written:,} bodies into {folder}")
    if refused:
        raise typer.Exit(4)


def _waiting(layout: Layout, *, every: bool = False) -> Iterator[tuple[str, DeadLetter]]:
    sent_back = set() if every else requeued_ids(layout)
    return (pair for pair in numbered_dead_letters(layout) if pair[0] not in sent_back)


def _chosen(layout: Layout, ids: list[str]) -> list[tuple[str, DeadLetter]]:
    wanted = set(ids)
    found = [pair for pair in numbered_dead_letters(layout) if pair[0] in wanted]
    if missing := wanted - {letter_id for letter_id, _ in found}:
        raise ConfigError(
            f"there is no dead letter {', '.join(sorted(missing))}",
            hint="`fuploader dead-letters list --all` shows the ids",
        )
    return found
