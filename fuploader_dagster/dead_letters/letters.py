"""Dead letters: messages that can never become files, kept whole.

What must always hold: a dead letter is durable here before its message leaves the queue, with its
raw bytes, the queue's headers and properties, and the reason.

Format: `dead-letters/YYYYMMDD-w{worker}.jsonl`, one JSON object per line; `body` is base64. A crash
can leave a torn last line: its message was not acknowledged and comes again. Items that could not
be processed are in `YYYYMMDD-process.jsonl`, those that a sink has no rows of in
`YYYYMMDD-sink-{name}.jsonl`; `body` is then the item's content. Of an item that has some of its
results, `body` is the content of an item that asks for the rest.

A letter's id is its file's stem and line number, `20261121-w0:15`. Letters that were sent back to
the queue stay where they are; their ids are in `dead-letters/requeued`, appended after the queue
confirmed them. After a crash in between they are sent twice; none is ever skipped. A letter that
the queue refuses (it is too large) does not keep the others from being sent, or from counting as
sent. The ids of letters that another attempt made untrue before anybody sent them are in
`dead-letters/outdated`: they wait no more, and their items are where they were. Those that a person
discarded are in `dead-letters/discarded`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fuploader_dagster.contracts.refused_messages import publish_accepted
from fuploader_dagster.contracts.source import Message, MessagePublisher
from fuploader_dagster.dead_letters import counts
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import append_durably, append_or_undo, make_dirs
from fuploader_dagster.disk.layout import Layout, utc
from fuploader_dagster.disk.locks import FileLock, waited_for
from fuploader_dagster.disk.own_files import file_mode, open_own
from fuploader_dagster.errors import UNREADABLE_JSON, BadMessage, MessageRefused
from fuploader_dagster.processing.envelope import message_of

log = logging.getLogger(__name__)

MAX_REASON_CHARACTERS = 500
SENT_BACK_MARGIN_SECONDS = 1.0
"""The clock of a file system advances in steps and may be slightly late."""

SET_BACK_SECONDS = 60.0
"""A time this far in the future is from before the clock was set back, or of another machine."""


PROCESSING_WRITER = "process"
"""Writes the letters of all items that could not be processed."""
SINK_STAGE = "sink:"
"""How the stage of items begins that a sink has no rows of; its name follows."""
_DAY = "[0-9]" * 8


class FailedItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item of a slot that could not be processed, or that a sink has no rows of."""

    stage: str = "process"
    """`process`, or `sink:` and the sink's name."""
    partition: str
    position: int
    """In the slot, from 0; of a sink that stores results, among the results."""
    name: str
    processing: str
    """`Processing.id`: a later processing of the same slot has another. Of a sink, the id of the
    delivery."""
    headers: dict[str, str] = {}
    failures: int = 0
    """Of an item that has results as well: number of its parts that have none."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One message that could not become a file, or one file that could not be processed, or not be
    stored as rows."""

    time: str
    """UTC, ISO 8601."""
    reason: str
    redelivered: bool
    message_id: str | None
    attributes: dict[str, Any]
    body: bytes
    item: FailedItem | None = None
    """Where it was, if it was a file of a slot by then."""


def sink_of(letter: DeadLetter) -> str:
    """The sink that has no rows of the letter's item; empty if it is about something else."""
    stage = letter.item.stage if letter.item is not None else ""
    return stage.removeprefix(SINK_STAGE) if stage.startswith(SINK_STAGE) else ""


def sink_writer(sink: str) -> str:
    """Writes the letters of all items that this sink has no rows of."""
    return f"sink-{sink}"


class DeadLetterBox:
    """The dead letters that one writer writes: a worker, or whoever processes slots or stores their
    rows in a sink."""

    def __init__(
        self, layout: Layout, writer: int | str, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`writer`: a worker's number; or one that several processes may be at once,
        `PROCESSING_WRITER` or that of a sink.
        """
        self._layout = layout
        self._folder = layout.dead_letters
        self._writer = f"w{writer}" if isinstance(writer, int) else writer
        self._counts_path = counts.counts_path(layout, self._writer)
        self._counts_are_ours = isinstance(writer, int)
        self._clock = clock
        self._counts: counts.DeadLetterCounts | None = None

    def keep(self, letters: Sequence[DeadLetter]) -> None:
        """Make the letters durable."""
        if not letters:
            return
        if self._counts_are_ours:
            self._keep(letters)
            return
        with waited_for(FileLock(self._layout.letters_lock(self._writer))):
            self._keep(letters)

    def _keep(self, letters: Sequence[DeadLetter]) -> None:
        make_dirs(self._folder)
        lines = b"".join(msgspec.json.encode(letter) + b"\n" for letter in letters)
        append_or_undo(self.path(), lines)
        reached(CrashPoint.DEAD_LETTERS_KEPT)
        self._count(letters)

    def _count(self, letters: Sequence[DeadLetter]) -> None:
        if self._counts is None or not self._counts_are_ours:
            self._counts = counts.read_worker_counts(self._counts_path)
        self._counts.add((letter.reason for letter in letters), self._clock())
        try:
            counts.write_worker_counts(self._counts_path, self._counts)
        except OSError as error:  # for displays only: the letters themselves are kept
            log.warning(
                "the counts of dead letters could not be written, no letter is lost: %s", error
            )

    def letter(
        self,
        message: Message,
        error: BadMessage,
        describe: Callable[[Message], dict[str, Any]],
    ) -> DeadLetter:
        """A letter about the message that `keep` can write, whatever the message contains.

        `describe`: the source's. Attributes that cannot be described are left out, and the letter
        says so.
        """
        message_id, attributes = message.message_id, _described(message, describe)
        if message_id is not None:
            message_id = message_id.encode("utf-8", "backslashreplace").decode()
        return DeadLetter(
            time=self.now(),
            reason=_bounded(str(error)),
            redelivered=message.redelivered,
            message_id=message_id,
            attributes=attributes,
            body=message.body,
        )

    def item_letter(self, item: FailedItem, reason: str, content: bytes) -> DeadLetter:
        """A letter about an item."""
        return DeadLetter(
            time=self.now(),
            reason=_bounded(reason),
            redelivered=False,
            message_id=None,
            attributes={},
            body=content,
            item=item,
        )

    def path(self) -> Path:
        """The file that is written today."""
        return self._folder / f"{utc(self._clock()):%Y%m%d}-{self._writer}.jsonl"

    def now(self) -> str:
        """The time now, in the form of a letter's `time`."""
        return _as_time(self._clock())


def _bounded(reason: str) -> str:
    return reason.encode("utf-8", "backslashreplace").decode()[:MAX_REASON_CHARACTERS]


def _described(message: Message, describe: Callable[[Message], dict[str, Any]]) -> dict[str, Any]:
    """What the source says about a message, if that can be written as JSON.

    Nothing may prevent a letter from being written: a message that cannot be described would come
    again for ever, and end the worker each time.
    """
    try:
        attributes = describe(message)
        msgspec.json.encode(attributes)
    except Exception as error:  # noqa: BLE001  the letter says it
        log.warning("a dead letter was written without its headers: %s", error)
        return {
            "undescribed": f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode()
        }
    return attributes


def read_dead_letters(layout: Layout) -> Iterator[DeadLetter]:
    """All dead letters of a pipeline, by day. A torn line is logged and skipped."""
    for _, letter in numbered_dead_letters(layout):
        yield letter


def item_letters(layout: Layout, writer: str = PROCESSING_WRITER) -> Iterator[FailedItem]:
    """The items that could not be processed, by day, or those of another writer."""
    for _, letter in numbered_dead_letters(layout, f"{_DAY}-{writer}"):
        if letter.item is not None:
            yield letter.item


def numbered_dead_letters(layout: Layout, stems: str = "*") -> Iterator[tuple[str, DeadLetter]]:
    """All dead letters with their ids, by day, including those that were sent back.

    `stems`: which files are read.
    """
    for path in sorted(layout.dead_letters.glob(f"{stems}.jsonl")):
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    letter = msgspec.json.decode(line, type=DeadLetter)
                except UNREADABLE_JSON as error:
                    log.warning("skipped a torn line in %s: %s", path, error)
                else:
                    yield f"{path.stem}:{number}", letter


def letters_of_processing(layout: Layout, processing: str) -> dict[int, tuple[str, DeadLetter]]:
    """The letters of this processing, with their ids, by the positions of their items; of several
    about an item the last one."""
    return {
        letter.item.position: (letter_id, letter)
        for letter_id, letter in numbered_dead_letters(layout, f"{_DAY}-{PROCESSING_WRITER}")
        if letter.item is not None and letter.item.processing == processing
    }


def requeued_ids(layout: Layout) -> set[str]:
    """Ids of letters that do not wait: they were sent back or discarded, or are outdated."""
    return sent_back_ids(layout) | _ids_in(_outdated(layout)) | _ids_in(_discarded(layout))


def sent_back_ids(layout: Layout) -> set[str]:
    """Ids of letters whose messages or items are somewhere else by now."""
    return _ids_in(_requeued(layout))


def sent_back_version(layout: Layout) -> tuple[int, int] | None:
    """Changes when a letter is sent back; None if none ever was."""
    path = _requeued(layout)
    if not path.exists():
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _ids_in(path: Path) -> set[str]:
    return set(path.read_text("utf-8").split()) if path.exists() else set()


@dataclass
class Requeued:
    """What happened to the letters that were to go back to the queue."""

    sent: int = 0
    """Confirmed by the queue."""
    refused: list[tuple[str, MessageRefused]] = field(default_factory=list)
    """Ids of those that the queue refused. They stay here."""


def requeue(
    layout: Layout, letters: Sequence[tuple[str, DeadLetter]], publisher: MessagePublisher
) -> Requeued:
    """Send letters back to the queue with their bodies, headers and properties.

    Raises what `MessagePublisher.publish` raises; then none of them counts as sent back.
    """
    if not letters:
        return Requeued()
    path = _requeued(layout)
    # From now on a redelivered message may be a letter sent back: letters here do not count for it.
    path.touch(file_mode(path.parent))
    refused = publish_accepted(
        publisher.publish_again, [(one.body, _attributes(one)) for _, one in letters]
    )
    sent = [letter_id for at, (letter_id, _) in enumerate(letters) if at not in refused]
    note_requeued(layout, sent)
    return Requeued(len(sent), [(letters[at][0], error) for at, error in refused.items()])


def as_message(letter: DeadLetter, message_format: str) -> DeadLetter:
    """A letter about a file as one about a message that becomes this file; others as they are."""
    if letter.item is None:
        return letter
    item = letter.item
    body, headers = message_of(item.name, letter.body, message_format, item.headers)
    message_id = headers.pop("message_id", None)
    attributes = {"headers": headers}
    return msgspec.structs.replace(
        letter, body=body, message_id=message_id, attributes=attributes, item=None
    )


def note_requeued(layout: Layout, ids: Sequence[str]) -> None:
    """Note that these letters were sent back: they do not wait any more."""
    _append(_requeued(layout), ids)


def note_outdated(layout: Layout, ids: Sequence[str]) -> None:
    """Note that these letters are not true any more, though nobody sent them back."""
    _append(_outdated(layout), ids)


def note_discarded(layout: Layout, ids: Sequence[str]) -> None:
    """Note that nobody wants these letters: they stay in their files, and wait no more."""
    _append(_discarded(layout), ids)


def _append(path: Path, ids: Sequence[str]) -> None:
    append_durably(path, "".join(f"{one}\n" for one in ids).encode("utf-8"))


def last_sent_back(layout: Layout) -> str:
    """When letters were last sent back to the queue, as a letter's `time`; empty if never."""
    path = _requeued(layout)
    if not path.exists():
        return ""
    return _as_time(path.stat().st_mtime + SENT_BACK_MARGIN_SECONDS)


def latest_of_now() -> str:
    """No letter's `time` is later than this, unless the clock was set back since."""
    return _as_time(time.time() + SET_BACK_SECONDS)


def _attributes(letter: DeadLetter) -> dict[str, Any]:
    """As the source described them, with the message id where they lack it."""
    named = {"message_id": letter.message_id} if letter.message_id else {}
    return {**named, **letter.attributes}


def _as_time(seconds: float) -> str:
    return utc(seconds).isoformat(timespec="milliseconds")


def _requeued(layout: Layout) -> Path:
    return layout.dead_letters / "requeued"


def _outdated(layout: Layout) -> Path:
    return layout.dead_letters / "outdated"


def _discarded(layout: Layout) -> Path:
    return layout.dead_letters / "discarded"
