"""The dead letters about a message, or about its file.

What must always hold: whichever way a letter says what it is about is enough: the message id, the
name of the file, or, of a message that could not become one, the name that its body gives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fuploader_dagster.dead_letters.letters import DeadLetter, requeued_ids
from fuploader_dagster.delivery.settled_letters import settled
from fuploader_dagster.disk.own_files import opened_own
from fuploader_dagster.errors import UNREADABLE_JSON, BadMessage, ForeignFile
from fuploader_dagster.lookup.directories import Reading
from fuploader_dagster.lookup.found import Letter
from fuploader_dagster.lookup.wanted import Wanted
from fuploader_dagster.processing.envelope import decode_json, decode_raw
from fuploader_dagster.settings.pipeline import Pipeline

_WITHOUT_ITEM = b'"item":null}\n'
"""How the line of a letter ends that is about a message."""
_ITEM = b'"item":{'


def letters_about(pipeline: Pipeline, wanted: Wanted, reading: Reading) -> list[Letter]:
    """Newest days first."""
    found = list(_found(pipeline, wanted, reading))
    sent_back = requeued_ids(pipeline.layout) if found else set()
    said = settled(((key, letter) for key, letter, _ in found), pipeline)
    return [
        Letter(
            id=key,
            pipeline=pipeline.name,
            node=pipeline.node,
            time=letter.time,
            stage=letter.item.stage if letter.item is not None else "drain",
            reason=letter.reason,
            waits=key not in sent_back and key not in said,
            sent_back=key in sent_back,
            settled=said.get(key, ""),
            name=name,
            message_id=letter.message_id,
            partition=letter.item.partition if letter.item is not None else None,
        )
        for key, letter, name in found
    ]


def _found(
    pipeline: Pipeline, wanted: Wanted, reading: Reading
) -> Iterator[tuple[str, DeadLetter, str]]:
    """Id, letter and the name of what it is about."""
    for path in sorted(pipeline.layout.dead_letters.glob("*.jsonl"), reverse=True):
        try:
            if not reading.allows(path, "files of dead letters"):
                continue
            for number, line in _lines(path):
                if not (wanted.may_be_in(line) or _may_be_in_body(line)):
                    continue
                try:
                    letter = msgspec.json.decode(line, type=DeadLetter)
                except UNREADABLE_JSON:
                    continue  # torn: its message was not acknowledged
                name = _name_of(letter, pipeline)
                if letter.message_id == wanted.text or wanted.fits(name):
                    yield f"{path.stem}:{number}", letter, name
        except (FileNotFoundError, ForeignFile) as error:
            reading.troubles.append(str(error))


def _may_be_in_body(line: bytes) -> bool:
    """Whether the letter is about a message: its name is in the body, which is base64 here."""
    return line.endswith(_WITHOUT_ITEM) or _ITEM not in line


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with (
        opened_own(path, os.O_RDONLY) as descriptor,
        os.fdopen(descriptor, "rb", closefd=False) as file,
    ):
        yield from enumerate(file, start=1)


def _name_of(letter: DeadLetter, pipeline: Pipeline) -> str:
    """The name of the file, or the one that the message would have had without a parser."""
    if letter.item is not None:
        return letter.item.name
    if pipeline.message_format != "raw":
        try:
            return decode_json(letter.body, name_fields=pipeline.name_fields).file_name
        except BadMessage:
            pass  # it is not JSON: perhaps that is why it became a letter
    return decode_raw(letter.body, letter.message_id).file_name
