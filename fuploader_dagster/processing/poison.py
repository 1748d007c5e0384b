"""Poison messages: which message ends its worker, and how often it was delivered.

The trouble: a parser that crashes the process, eats all memory or never returns ends the worker,
the queue delivers the message again, and the next worker ends the same way. No exception tells
which message it was. Nor is the parser the only cause: any unforeseen error between receiving a
message and settling it happens again with the same message.

What must always hold: a message that ends its worker at each delivery becomes a dead letter at the
first delivery after `max_deliveries`, without being decoded again, and everything else flows; no
message becomes a dead letter for having been in the same batch, or for one death of its worker
alone.

How. Of messages that come for the first time a worker notes only that it is handling some.
Redelivered ones may be why the last worker died: the worker writes their digests down before it
decodes, stores and settles them, and strikes them out after that. A worker that starts reads what
its dead predecessor had written down:

- several together: each of them is a suspect from now on, and is handled alone, after what came
  before it was settled;
- one alone: that message did it. Its deliveries are counted.

A suspect that was settled is no suspect any more. Trouble that has a name (the broker, the state
store, the disk) is no message's fault and strikes them out as well. Nothing is synced: the page
cache outlives a process, and after a power cut counting starts over.

Format, in `suspects/`: `w{worker}` holds what this worker is handling: `F` (first deliveries), `A`
(one alone) or `T` (several together), then 32 bytes of SHA-256 for each redelivered body; empty
between two attempts. `known.json` is an object of suspects, by their digest in hex: how many
workers each has ended together with others and alone, and when it last did.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import msgspec

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.disk.durable import make_dirs, write_for_readers
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock, waited_for
from fuploader_dagster.disk.own_files import open_own, opened_own, read_own
from fuploader_dagster.errors import UNREADABLE_JSON, BadMessage, FuploaderError

log = logging.getLogger(__name__)

FORGOTTEN_AFTER_SECONDS = 7 * 86_400.0
"""A suspect that did not come again for this long was removed from the queue by somebody."""
_DIGEST_BYTES = 32
_FIRST, _ALONE, _TOGETHER = b"F", b"A", b"T"


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers one message may have ended."""

    together: int = 0
    alone: int = 0
    last: float = 0.0
    """Seconds since 1970."""

    @property
    def deliveries(self) -> int:
        """How often it was delivered, counting the first time, which is not recorded."""
        return 1 + self.together + self.alone


@dataclass(frozen=True)
class Attempt:
    """Messages to be decoded, stored and settled together."""

    messages: Sequence[Message]
    digests: Sequence[str] = ()
    """Of the redelivered ones."""
    alone: bool = False
    """The one message is a suspect."""
    verdict: BadMessage | None = None
    """The result without decoding it: it ended its worker too often."""


def is_poison(suspect: Suspect, max_deliveries: int) -> bool:
    """Whether to give it up. Its first delivery, and one together with others, prove nothing."""
    return suspect.alone >= max_deliveries - 2


def was_handling(layout: Layout, worker: int) -> bool:
    """Whether a worker that is dead now died while it handled messages."""
    path = _handled_by(layout, worker)
    return path.exists() and path.stat().st_size > 0


def _handled_by(layout: Layout, worker: int) -> Path:
    """The file of what the worker is handling."""
    return layout.suspects / f"w{worker}"


class Suspects:
    """The suspects as one worker sees them; it shares them with the other workers."""

    def __init__(
        self,
        layout: Layout,
        worker: int,
        *,
        max_deliveries: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._layout = layout
        self._worker = worker
        self._max_deliveries = max_deliveries
        self._clock = clock
        self._handled = _handled_by(layout, worker)
        self._known_path = layout.suspects / "known.json"
        self._known: dict[str, Suspect] = {}
        self._known_version: tuple[int, int] | None = None

    def blame_after_crash(self) -> None:
        """Blame what the predecessor was handling when it died. Call it with this worker's slots
        locked: then the predecessor is gone.
        """
        make_dirs(self._layout.suspects)
        with os.fdopen(open_own(self._handled, os.O_RDWR | os.O_CREAT), "r+b") as file:
            left = file.read()
            digests = [
                left[start : start + _DIGEST_BYTES].hex()
                for start in range(1, len(left), _DIGEST_BYTES)
            ]
            if digests:
                log.warning(
                    "worker %d died while it handled %d redelivered message(s); from now on it "
                    "handles each of them alone",
                    self._worker,
                    len(digests),
                )
                self._update(blame=digests, alone=left[:1] == _ALONE)
            file.truncate(0)

    def attempts(self, batch: Sequence[Message]) -> Iterator[Attempt]:
        """The batch in its order: each suspect alone, and the messages between them together."""
        if not any(message.redelivered for message in batch):
            if batch:
                yield Attempt(batch)
            return
        known = self._read()
        digests = [
            hashlib.sha256(message.body).hexdigest() if message.redelivered else ""
            for message in batch
        ]
        for group in _groups(digests, known):
            suspect = known.get(digests[group.start])
            poison = suspect is not None and is_poison(suspect, self._max_deliveries)
            yield Attempt(
                batch[group.start : group.stop],
                [digest for digest in digests[group.start : group.stop] if digest],
                alone=suspect is not None,
                verdict=_verdict(suspect) if suspect is not None and poison else None,
            )

    @contextmanager
    def recorded(self, attempt: Attempt) -> Iterator[None]:
        """Make the attempt within the block: decode, store, settle.

        Its redelivered messages stay written down if the process dies in the block, or is about to
        because of an unforeseen error.
        """
        with opened_own(self._handled, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            kind = _ALONE if attempt.alone else _TOGETHER if attempt.digests else _FIRST
            os.write(descriptor, kind + bytes.fromhex("".join(attempt.digests)))
            try:
                yield
            except FuploaderError:
                os.ftruncate(descriptor, 0)
                raise
            os.ftruncate(descriptor, 0)
        if attempt.alone:
            self._update(forget=attempt.digests)

    def _read(self) -> dict[str, Suspect]:
        """All suspects, of all workers."""
        try:
            stat = self._known_path.lstat()
        except FileNotFoundError:
            return {}
        version = (stat.st_ino, stat.st_mtime_ns)
        if version != self._known_version:
            content = read_own(self._known_path)
            try:
                self._known = msgspec.json.decode(content, type=dict[str, Suspect])
            except UNREADABLE_JSON as error:  # a power cut: it is not synced
                log.warning(
                    "%s cannot be read, so counting deliveries starts over: %s",
                    self._known_path,
                    error,
                )
                self._known = {}
            self._known_version = version
        return self._known

    def _update(
        self, *, blame: Collection[str] = (), alone: bool = False, forget: Collection[str] = ()
    ) -> None:
        with waited_for(FileLock(self._layout.suspects_lock)):
            now = self._clock()
            known = {
                # if the clock was set back, what is in the future counts as now
                digest: msgspec.structs.replace(one, last=min(one.last, now))
                for digest, one in self._read().items()
                if digest not in forget and now - one.last < FORGOTTEN_AFTER_SECONDS
            }
            for digest in blame:
                before = known.get(digest, Suspect())
                known[digest] = Suspect(
                    together=before.together + (not alone), alone=before.alone + alone, last=now
                )
            write_for_readers(self._known_path, msgspec.json.encode(known))


def _groups(digests: Sequence[str], known: Collection[str]) -> Iterator[range]:
    start = 0
    for suspected, members in groupby(digests, key=lambda digest: digest in known):
        end = start + len(list(members))
        if suspected:
            yield from (range(place, place + 1) for place in range(start, end))
        else:
            yield range(start, end)
        start = end


def _verdict(suspect: Suspect) -> BadMessage:
    return BadMessage(
        f"handling it ended the worker process: it was delivered {suspect.deliveries} times, "
        f"the last {suspect.alone} of them alone",
        hint="the workers' log says whether the parser crashed, ran out of memory or hung; correct "
        "it, then run `fuploader dead-letters requeue`",
    )
