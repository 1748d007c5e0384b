"""The partitions that a consumer holds, and where it goes on in each.

What must always hold:

- Each assignment of a partition makes a new `Held`. Offsets are committed only for the `Held` that
  is current: of messages that were received before a partition went away, nothing is committed,
  even if the partition came back meanwhile.
- Before the first message of a partition is handed out, the group has a committed offset of it. So
  one that has none was never read, and a restart goes on where the first start began.
- After each assignment, so many messages are marked as redelivered that all that anybody had in
  hand before is among them.
- A reading of a partition goes on from one assignment to the next, and to other workers. Another
  one begins where reading does not go on at the offset to which it came: at the first start, in a
  topic that was created again, where offsets are gone, and at an offset that somebody else
  committed (a person who sets the group back). Its name is committed before its first message is
  handed out.

Format of the metadata of a committed offset: `fuploader/2 TOPIC_ID PREFETCH READING`, the topic's
id (`-` if the broker has none), the prefetch of the worker, and the name of the reading. Version 1
had no reading. Others' metadata, or none, is no error.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

from fuploader_dagster.contracts.source import Position

log = logging.getLogger(__name__)

_FORMAT, _FORMER_FORMAT = "fuploader/2", "fuploader/1"
_TWICE = 2
"""All that a worker has in hand is no more than its prefetch; twice that is to be sure."""


class Held:
    """One assignment of one partition."""

    __slots__ = ("committed", "doubtful", "last", "next_offset", "number", "reading", "topic")

    def __init__(
        self, topic: str, number: int, start: int, doubtful: int, reading: str = ""
    ) -> None:
        """`reading`: the one that goes on; without it another one begins."""
        self.topic, self.number = topic, number
        self.reading = reading or secrets.token_hex(6)
        self.doubtful = doubtful
        """How many of the next messages somebody may have had in hand before."""
        self.next_offset = start
        """The offset after the last message that was handed out."""
        self.committed = -1
        """The offset that we committed last."""
        self.last: InHand | None = None
        """The last message that was handed out."""

    @property
    def place(self) -> tuple[str, int]:
        return self.topic, self.number

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class InHand:
    """A message that was handed out and is not settled."""

    __slots__ = ("delivery", "held", "next_offset", "record")

    def __init__(self, delivery: int, held: Held, next_offset: int, record: Any) -> None:
        self.delivery, self.held, self.next_offset = delivery, held, next_offset
        self.record = record

    @property
    def position(self) -> Position:
        """That of the message; tombstones that are passed over after it are before the next."""
        epoch = self.record.leader_epoch()
        held, offset = self.held, self.record.offset()
        return Position(str(held), held.reading, offset, -1 if epoch is None else epoch)


class Note(NamedTuple):
    """What we write beside a committed offset."""

    topic_id: str = ""
    prefetch: int = 0
    reading: str = ""

    def __str__(self) -> str:
        return f"{_FORMAT} {self.topic_id or '-'} {self.prefetch} {self.reading}"


def read_note(metadata: str | None) -> Note:
    """An empty one for anything that we did not write."""
    parts = (metadata or "").split(" ")
    if parts[0] == _FORMER_FORMAT:
        parts.append("")
    if len(parts) != 4 or parts[0] not in (_FORMAT, _FORMER_FORMAT) or not parts[2].isdecimal():
        return Note()
    return Note("" if parts[1] == "-" else parts[1], int(parts[2]), parts[3])


def in_ranges(places: Iterable[tuple[str, int]]) -> str:
    """Partitions in words, those that follow one another as one: `a[0-2], a[5], b[1]`."""
    ranges: list[tuple[str, int, int]] = []
    for topic, number in sorted(places):
        if ranges and ranges[-1][0] == topic and ranges[-1][2] == number - 1:
            ranges[-1] = (topic, ranges[-1][1], number)
        else:
            ranges.append((topic, number, number))
    return ", ".join(
        f"{topic}[{first}]" if first == last else f"{topic}[{first}-{last}]"
        for topic, first, last in ranges
    )


def doubtful_after(note: Note, prefetch: int) -> int:
    return _TWICE * max(prefetch, note.prefetch)


def was_created_again(note: Note, topic_id: str) -> bool:
    return bool(note.topic_id and topic_id and note.topic_id != topic_id)


def say_created_again(topic: str, number: int, committed: int, start: int) -> None:
    log.warning(
        "topic %s was deleted and created again: partition %d is read from offset %d, its oldest "
        "message, and not from %d, which was committed for the old topic",
        topic,
        number,
        start,
        committed,
    )


def say_out_of_range(held: Held, oldest: int, end: int) -> None:
    """The broker has no message where we wanted to go on."""
    wanted = held.next_offset
    if wanted < oldest:
        log.error(
            "%s: Kafka removed up to %d messages before they were read, those with offsets from %d "
            "to %d; reading goes on with the oldest that is left (raise retention.ms or "
            "retention.bytes of the topic, or find out why the drain was behind)",
            held,
            oldest - wanted,
            wanted,
            oldest - 1,
        )
    else:
        log.warning(
            "%s ends at offset %d, and %d was to be read next: the topic was created again, or its "
            "broker lost messages. It is read again from its oldest message (offset %d)",
            held,
            end,
            wanted,
            oldest,
        )
