"""The commands `dead-letters`: look at messages that could not become files, send them back."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fuploader_dagster.archives.restore_folder import Refused, RestoreFolder
from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import REFUSED
from fuploader_dagster.cli.stages import hand_over
from fuploader_dagster.cli.words import counted, size
from fuploader_dagster.contracts.source import MessagePublisher
from fuploader_dagster.dead_letters.letters import (
    DeadLetter,
    as_message,
    numbered_dead_letters,
    requeue,
    requeued_ids,
    sink_of,
)
from fuploader_dagster.delivery.reprocess import process_again
from fuploader_dagster.delivery.sending_back import SendingBack
from fuploader_dagster.delivery.settled_letters import settled
from fuploader_dagster.delivery.stored_letters import store_letters
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock, waited_for
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline

SHOWN_REASON = 100

dead_letters = typer.Typer(
    no_args_is_help=True,
    help="Messages that could not become files: list, show, requeue, export.",
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
    ((_, letter),) = _chosen(layout, [letter_id])
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
    if bool(ids) == every:
        raise ConfigError(
            "give either the ids of dead letters or --all",
            hint="`fuploader dead-letters list` shows the ids",
        )
    layout = pipeline.layout
    with waited_for(FileLock(layout.letters_lock("requeue"))):  # or two commands send the same
        letters = list(_not_sent_back(layout)) if every else _chosen(layout, ids or [])
        if stage and every:
            letters = [pair for pair in letters if pair[1].item is not None]
        left = _do_again(letters, pipeline) if stage else _send(letters, pipeline)
    if left:
        raise typer.Exit(REFUSED)


def _send(letters: Sequence[tuple[str, DeadLetter]], pipeline: Pipeline) -> bool:
    """Send them to the queue. Returns whether some stay that are not settled."""
    sending = SendingBack(letters, pipeline)
    sent, refused = 0, 0
    with ExitStack() as opened:
        publisher: MessagePublisher | None = None
        for batch in sending.batches():
            publisher = publisher or opened.enter_context(closing(pipeline.source.publisher()))
            messages = [(key, as_message(one, pipeline.message_format)) for key, one in batch]
            done = requeue(pipeline.layout, messages, publisher)
            sent += done.sent
            refused += len(done.refused)
            for letter_id, error in done.refused:
                console.complain(f"{letter_id} stays here: {error}")
    _say_not_sent(sending)
    if sent or not sending.settled:
        console.say(f"sent {counted(sent, 'message')} back to {pipeline.source.describe()}")
    return bool(refused or sending.busy)


def _do_again(letters: Sequence[tuple[str, DeadLetter]], pipeline: Pipeline) -> bool:
    """Process them again, or store their rows. Returns whether some stay that are not settled."""
    of_sinks = SendingBack([pair for pair in letters if sink_of(pair[1])], pipeline)
    others = SendingBack([pair for pair in letters if not sink_of(pair[1])], pipeline)
    slots = process_again(others.batches(), pipeline) if others or not of_sinks else []
    if slots:
        hand_over(pipeline, slots)
    _say_not_sent(others)
    for slot in slots:
        seal = slot.seal
        console.say(
            f"{counted(seal.messages, 'file')} will be processed again, as {seal.partition}"
        )
    if not (slots or of_sinks or others.settled):
        console.say("there is nothing to process again")
    refused = bool(of_sinks) and _store_again(of_sinks, pipeline)
    return bool(refused or others.busy or of_sinks.busy)


def _store_again(letters: SendingBack, pipeline: Pipeline) -> bool:
    done = store_letters(letters.batches(), pipeline)
    _say_not_sent(letters)
    for letter_id, error in done.refused:
        console.complain(f"{letter_id} stays here: {error}")
    if done.letters or done.refused or not letters.settled:
        console.say(f"stored {counted(done.rows, 'row')} of {counted(done.letters, 'file')}")
    return bool(done.refused)


@dead_letters.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write into; created if it is missing.")],
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    every: EveryOption = False,
) -> None:
    """Write each raw body into a file of its own. Existing files are not touched."""
    pipeline = console.one_pipeline(config, pipeline_name)
    layout = pipeline.layout
    done = {} if every else settled(_not_sent_back(layout), pipeline)
    written = refused = 0
    with RestoreFolder(folder) as target:
        for letter_id, letter in _not_sent_back(layout, every=every):
            if letter_id in done:
                continue
            try:
                written += target.write(letter_id.replace(":", "-"), [memoryview(letter.body)])
            except Refused as error:
                refused += 1
                console.complain(f"not written: {error.message}")
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


def _say_not_sent(letters: SendingBack) -> None:
    _say_settled(letters.settled)
    for letter_id, sentence in letters.busy.items():
        console.complain(f"{letter_id} stays here: {sentence}")


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


def _chosen(layout: Layout, ids: list[str]) -> list[tuple[str, DeadLetter]]:
    wanted = set(ids)
    found = [pair for pair in numbered_dead_letters(layout) if pair[0] in wanted]
    if missing := wanted - {letter_id for letter_id, _ in found}:
        raise ConfigError(
            f"there is no dead letter {', '.join(sorted(missing))}",
            hint="`fuploader dead-letters list --all` shows the ids",
        )
    return found
