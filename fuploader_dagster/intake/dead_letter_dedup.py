"""Dead letters of redelivered messages: has a message its dead letter already?

The trouble: a worker writes a dead letter and dies, or loses its connection, before the queue
forgets the message. The message comes again, and would become a second letter.

What must always hold:

- A message has its letter already only if one with the same body, message id and headers was read
  from a file just now, and the file was synced after that.
- A letter from before the last time that letters were sent back to the queue does not count: the
  redelivered message may be that letter, and has to become a letter again.

How. Only redelivered messages are looked for, and only among the last letters of each worker, as
many as it can have had in hand. Nothing is remembered between two looks, so nothing can be out of
date; and commits that look take turns (`commit_turns`), so nobody's letter is missed. A look reads
some megabytes; it happens after a crash, not for each message.

Headers that begin with `x-` are not compared: brokers count deliveries in them. A message that was
published twice becomes two letters.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from fuploader_dagster.dead_letters.letters import DeadLetter, last_sent_back, latest_of_now
from fuploader_dagster.disk.durable import fsync_dir, fsync_file
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import open_own
from fuploader_dagster.errors import UNREADABLE_JSON

FILES_LOOKED_AT = 2
"""Of each worker: the newest one may be only minutes old."""
_END_OF_TIME = "9999"
"""Later than every letter's time."""
_BLOCK_BYTES = 1 << 18


def without_written(
    letters: Sequence[DeadLetter], layout: Layout, in_hand: int, *, check_all: bool
) -> list[DeadLetter]:
    """The letters without those that are in a file already.

    `in_hand`: how many messages a worker can have in hand. `check_all`: look also for messages that
    came for the first time, because another worker may have them too.
    """
    looked_for = [
        _identity(letter) if check_all or letter.redelivered else None for letter in letters
    ]
    written = _written({one for one in looked_for if one is not None}, layout, in_hand)
    return [letter for letter, one in zip(letters, looked_for, strict=True) if one not in written]


def _written(wanted: Collection[bytes], layout: Layout, in_hand: int) -> set[bytes]:
    """Which of the identities have a durable letter."""
    found: set[bytes] = set()
    if not wanted:
        return found
    newer_than = last_sent_back(layout)
    # If the clock was set back, a letter dated in the future may be older than the sending back.
    until = latest_of_now() if newer_than else _END_OF_TIME
    for path in _newest_files(layout.dead_letters):
        letters = _letters_at_the_end(path, in_hand)
        here = {_identity(letter) for letter in letters if newer_than < letter.time <= until}
        if not here.isdisjoint(wanted):
            fsync_file(path)  # its writer may have died before it synced
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
    for path in sorted(folder.glob("*-w*.jsonl")):  # by their days
        of_worker[path.stem.partition("-")[2]].append(path)
    for paths in of_worker.values():
        yield from paths[-FILES_LOOKED_AT:]


def _letters_at_the_end(path: Path, count: int) -> Iterator[DeadLetter]:
    """At least the last `count` letters, if there are that many; torn lines are skipped."""
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
