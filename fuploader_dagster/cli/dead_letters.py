"""The commands `dead-letters`: look at messages that could not become files, send them back."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import REFUSED
from fuploader_dagster.cli.stages import hand_over
from fuploader_dagster.cli.words import counted, size
from fuploader_dagster.dead_letters.letters import DeadLetter, numbered_dead_letters, requeued_ids
from fuploader_dagster.delivery.send_letters import discard, export, send_back, waiting_letters
from fuploader_dagster.delivery.settled_letters import settled
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import ConfigError

SHOWN_REASON = 100

dead_letters = typer.Typer(
    no_args_is_help=True,
    help="Messages that could not become files: list, show, requeue, export, discard.",
)

IdsArgument = Annotated[
    list[str] | None, typer.Argument(help="Ids, as `fuploader dead-letters list` shows them.")
]
EveryOption = Annotated[
    bool, typer.Option("--all", help="Include those that were sent back, or are settled.")
]


@dead_letters.command(name="list")
def list_letters(
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    every: EveryOption = False,
    as_json: console.JsonOption = False,
) -> None:
    """List dead letters, oldest first, and count the most frequent reasons."""
    pipeline = console.one_pipeline(config, pipeline_name)
    letters = list(_not_sent_back(pipeline.layout, every=every))
    done = settled(letters, pipeline)
    if not every:
        letters = [pair for pair in letters if pair[0] not in done]
    if as_json:
        console.print_json(
            [
                {
                    "id": key,
                    "time": one.time,
                    "reason": one.reason,
                    **_place(one),
                    **({"settled": done[key]} if key in done else {}),
                }
                for key, one in letters
            ]
        )
        return
    console.show_table(
        ("id", "time", "stage", "size", "reason"),
        (
            (
                letter_id,
                letter.time,
                letter.item.stage if letter.item else "drain",
                size(len(letter.body)),
                letter.reason[:SHOWN_REASON],
            )
            for letter_id, letter in letters
        ),
        none="no dead letter waits",
    )
    for reason, count in Counter(letter.reason for _, letter in letters).most_common(10):
        console.say(f"{count:,} × {reason[:SHOWN_REASON]}")
    _say_settled(done)


@dead_letters.command()
def show(
    letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="As `fuploader dead-letters list` shows it.")
    ],
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    body: Annotated[bool, typer.Option("--body", help="Print only the raw body.")] = False,
    as_json: console.JsonOption = False,
) -> None:
    """Show a whole dead letter: reason, headers and body, a text as text."""
    layout = console.one_pipeline(config, pipeline_name).layout
    ((_, letter),) = waiting_letters(layout, [letter_id])
    if body:
        sys.stdout.buffer.write(letter.body)
    elif as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(letter)) + b"\n")
    else:
        _print_letter(letter_id, letter)


def _print_letter(letter_id: str, letter: DeadLetter) -> None:
    plain = msgspec.to_builtins(letter)
    console.say(f"{letter_id}, {letter.time}: {letter.reason}")
    for name in [one for one in plain if one not in ("time", "reason", "body")]:
        value = plain[name]
        for inner, one in value.items() if isinstance(value, dict) else [("", value)]:
            if one not in (None, "", {}, []):
                console.say(f"{name}{'.' * bool(inner)}{inner}: {one}")
    console.say(f"body, {size(len(letter.body))}:")
    for line in console.text_of(letter.body):
        console.say(f"    {line}")


@dead_letters.command(name="requeue")
def requeue_letters(
    ids: IdsArgument = None,
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="Send all that were not sent back yet.")
    ] = False,
    stage: Annotated[
        bool,
        typer.Option(
            "--stage",
            help="Do again what failed, instead of sending files to the queue as messages: process "
            "them, or store their rows in the sink that did not take them.",
        ),
    ] = False,
) -> None:
    """Send dead letters back to the queue with their headers and properties, each confirmed.

    One that the queue refuses stays here and is named, as one does whose partition is in work; the
    exit code is then 4. One that is settled is not sent: its item was stored since by another
    attempt.
    """
    pipeline = console.one_pipeline(config, pipeline_name)
    _choose(ids, every=every)
    sent = send_back(pipeline, ids or [], stage=stage)
    if sent.slots:
        hand_over(pipeline, sent.slots)
    _say_settled(sent.settled)
    for letter_id, reason in sent.refused.items():
        console.complain(f"{letter_id} stays here: {reason}")
    nothing = not (sent.settled or sent.refused or sent.slots or sent.files)
    if not stage:
        if sent.messages or nothing:
            console.say(
                f"sent {counted(sent.messages, 'message')} back to {pipeline.source.describe()}"
            )
    elif nothing:
        console.say("there is nothing to process again")
    for slot in sent.slots:
        files = counted(slot.seal.messages, "file")
        console.say(f"{files} will be processed again, as {slot.seal.partition}")
    if sent.files:
        console.say(f"stored {counted(sent.rows, 'row')} of {counted(sent.files, 'file')}")
    if sent.refused:
        raise typer.Exit(REFUSED)


@dead_letters.command(name="discard")
def discard_letters(
    ids: IdsArgument = None,
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    every: Annotated[bool, typer.Option("--all", help="Discard all that wait.")] = False,
) -> None:
    """Have dead letters wait no more, because nobody needs them. Nothing is removed.

    `fuploader dead-letters list --all` shows them.
    """
    pipeline = console.one_pipeline(config, pipeline_name)
    _choose(ids, every=every)
    done = counted(discard(pipeline.layout, ids or []), "dead letter")
    console.say(f"discarded {done}; the bodies stay on the disk")


@dead_letters.command(name="export")
def export_letters(
    folder: Annotated[Path, typer.Argument(help="Folder to write into; created if it is missing.")],
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    every: EveryOption = False,
) -> None:
    """Write each raw body into a file of its own. Existing files are not touched."""
    pipeline = console.one_pipeline(config, pipeline_name)
    layout = pipeline.layout
    done = {} if every else settled(_not_sent_back(layout), pipeline)
    letters = (pair for pair in _not_sent_back(layout, every=every) if pair[0] not in done)
    written, refused = export(letters, folder)
    for sentence in refused:
        console.complain(f"not written: {sentence}")
    console.say(f"wrote {counted(written, 'body', 'bodies')} into {folder}")
    if refused:
        raise typer.Exit(REFUSED)


def _place(letter: DeadLetter) -> dict[str, Any]:
    """Where a file was that could not be processed, or that a sink has no rows of."""
    if (item := letter.item) is None:
        return {}
    return {"stage": item.stage, "partition": item.partition, "name": item.name}


def _not_sent_back(layout: Layout, *, every: bool = False) -> Iterator[tuple[str, DeadLetter]]:
    sent_back = set() if every else requeued_ids(layout)
    return (pair for pair in numbered_dead_letters(layout) if pair[0] not in sent_back)


def _choose(ids: Sequence[str] | None, *, every: bool) -> None:
    if bool(ids) == every:
        raise ConfigError(
            "give either the ids of dead letters or --all",
            hint="`fuploader dead-letters list` shows the ids",
        )


def _say_settled(sentences: Mapping[str, str]) -> None:
    """Why nothing has to be done about these letters."""
    if not sentences:
        return
    letters = counted(len(sentences), "dead letter is", "dead letters are")
    console.say(
        f"{letters} settled, because stored since by another attempt "
        f"(`fuploader dead-letters list --all` shows them):"
    )
    for sentence, count in Counter(sentences.values()).most_common(10):
        console.say(f"{count:,} × {sentence}")
