"""The partitions that a consumer holds, and where it goes on in each.

What must always hold:

- Each assignment of a partition makes a new `Held`. Offsets are committed only for the `Held` that
  is current: of messages that were received before a partition went away, nothing is committed,
  even if the partition came back meanwhile.
- Before the first message of a partition is handed out, the group has a committed offset of it. So
  one that has none was never read, and a restart goes on where the first start began.
- After each assignment, so many messages are marked as redelivered that all that anybody had in
  hand before is among them.

Format of the metadata of a committed offset: `fuploader/1 TOPIC_ID PREFETCH`, the topic's id (`-`
if the broker has none) and the prefetch of the worker. Others' metadata, or none, is no error.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

log = logging.getLogger(__name__)

_FORMAT = "fuploader/1"
_TWICE = 2
"""All that a worker has in hand is no more than its prefetch; twice that is to be sure."""


class Held:
    """One assignment of one partition."""

    __slots__ = ("committed", "doubtful", "last", "next_offset", "number", "topic")

    def __init__(self, topic: str, number: int, start: int, doubtful: int) -> None:
        self.topic, self.number = topic, number
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

    __slots__ = ("delivery", "held", "next_offset")

    def __init__(self, delivery: int, held: Held, next_offset: int) -> None:
        self.delivery, self.held, self.next_offset = delivery, held, next_offset


class Note(NamedTuple):
    """What we write beside a committed offset."""

    topic_id: str = ""
    prefetch: int = 0

    def __str__(self) -> str:
        return f"{_FORMAT} {self.topic_id or '-'} {self.prefetch}"


def read_note(metadata: str | None) -> Note:
    """An empty one for anything that we did not write."""
    parts = (metadata or "").split(" ")
    if len(parts) != 3 or parts[0] != _FORMAT or not parts[2].isdecimal():
        return Note()
    return Note("" if parts[1] == "-" else parts[1], int(parts[2]))


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
