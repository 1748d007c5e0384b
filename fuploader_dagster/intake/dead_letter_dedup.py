"""Kept letters: has a message that came again its dead letter already?

The trouble: a worker dies behind the letter's line and before the queue forgets the message, or its
connection is cut there. The message comes again, and would become a second letter.

What must always hold:

- A message has its letter already only if one with the same body, message id and headers was read
  from a file in this moment, and the file was synced after that.
- A letter from before the last one was sent back to the queue does not count: its message may be
  that one, and has to become a letter anew.

How. Looked for is only what came again, and only among the last letters of each worker, as many as
it can have had in hand. Nothing is remembered between two looks, so nothing can be out of date; and
commits that look take turns (`commit_turns`), so nobody's letter is missed. A look reads some
megabytes: it comes after a crash, not with each message.

Not compared are headers that begin with `x-`: brokers count deliveries in them. What is published
twice is two letters.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from fuploader_dagster.disk.durable import fsync_dir, fsync_file
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import open_own
from fuploader_dagster.errors import UNREADABLE_JSON
from fuploader_dagster.intake.dead_letters import DeadLetter, last_sent_back, latest_of_now

FILES_LOOKED_AT = 2
"""Of each worker: the newest one may be some minutes old."""
LATEST = "9999"
"""Later than every letter's time."""
_BLOCK_BYTES = 1 << 18


def without_kept(
    letters: Sequence[DeadLetter], layout: Layout, in_hand: int, *, all_may_be_kept: bool
) -> list[DeadLetter]:
    """The letters without those that a file has already.

    `in_hand`: how many messages a worker can have had. `all_may_be_kept`: also those whose messages
    came for the first time, because somebody else may have them too.
    """
    looked_for = [
        _identity(letter) if all_may_be_kept or letter.redelivered else None for letter in letters
    ]
    kept = _kept({one for one in looked_for if one is not None}, layout, in_hand)
    return [letter for letter, one in zip(letters, looked_for, strict=True) if one not in kept]


def _kept(wanted: Collection[bytes], layout: Layout, in_hand: int) -> set[bytes]:
    """Which of the identities have a durable letter."""
    found: set[bytes] = set()
    if not wanted or not layout.dead_letters.is_dir():
        return found
    newer_than = last_sent_back(layout)
    # If the clock was set back, a letter of the future may be from before letters were sent back.
    until = latest_of_now() if newer_than else LATEST
    for path in _newest_files(layout.dead_letters):
        letters = _letters_at_the_end(path, in_hand)
        here = {_identity(letter) for letter in letters if newer_than < letter.time <= until}
        if not here.isdisjoint(wanted):
            fsync_file(path)  # its writer may have died before he did
            found |= here.intersection(wanted)
    if found:
        fsync_dir(layout.dead_letters)
    return found


def _identity(letter: DeadLetter) -> bytes:
    headers = letter.attributes.get("headers")
    if isinstance(headers, dict):
        headers = {name: headers[name] for name in sorted(headers) if not name.startswith("x-")}
    content = msgspec.json.encode((letter.body, letter.message_id, headers or None))
    return hashlib.sha256(content).digest()


def _newest_files(folder: Path) -> Iterator[Path]:
    of_worker: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):  # by their days
        of_worker[path.stem.partition("-")[2]].append(path)
    for paths in of_worker.values():
        yield from paths[-FILES_LOOKED_AT:]


def _letters_at_the_end(path: Path, count: int) -> Iterator[DeadLetter]:
    """At least so many of the last letters, if there are as many; torn lines are passed over."""
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        start = file.seek(0, os.SEEK_END)
        breaks = 0
        while start > 0 and breaks <= count:
            size = min(_BLOCK_BYTES, start)
            start = file.seek(start - size)
            breaks += file.read(size).count(b"\n")
        file.seek(start)
        for line in file:  # the first one may be the end of a letter that is too old anyway
            try:
                yield msgspec.json.decode(line, type=DeadLetter)
            except UNREADABLE_JSON:
                continue
