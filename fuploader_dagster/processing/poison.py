"""Suspects: messages that may have ended a worker, and how often each was delivered.

The trouble: a parser that crashes the process, eats all memory or never returns takes the worker
with it, the queue delivers the message again, and the next worker dies of it too. No exception
tells which message it was. Nor is it only the parser: whatever goes wrong unforeseen between
receiving a message and settling it comes again with the message.

What must always hold: a message that ends its worker at each delivery becomes a dead letter at the
delivery behind `max_deliveries`, without being decoded again, and everything else flows; no message
becomes a dead letter for having been in the same batch, or for one death of its worker alone.

How. Of messages that come for the first time nothing is noted but that some are being handled.
Those that come again may be why the last worker died: their digests are written down while they are
decoded, stored and settled, and struck out after that. A worker finds what its dead predecessor had
written down:

- many together: each of them is a suspect from now on, and is handled alone, after what came
  before it was settled;
- one alone: that one it was. The deliveries are counted.

A suspect that was settled is none any more. Trouble that has a name (the broker, the state store,
the disk) is nobody's fault and strikes them out as well. Nothing is synced: the page cache outlives
a process, and after a power cut counting begins again.

Format, in `suspects/`: `w{worker}` holds what this worker is handling: `F` (first deliveries), `A`
(one alone) or `T` (several together), then 32 bytes of SHA-256 for each body that came again; empty
between two attempts. `known.json` is an object of suspects, by their digest in hex: how many
workers each has ended together with others and alone, and when it did last.
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

import msgspec

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.disk.durable import FileLock, make_dirs, write_for_readers
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import open_own, read_own
from fuploader_dagster.errors import UNREADABLE_JSON, BadMessage, FuploaderError

log = logging.getLogger(__name__)

FORGOTTEN_AFTER_SECONDS = 7 * 86_400.0
"""A suspect that did not come again for so long was taken out of the queue by somebody."""
_DIGEST_BYTES = 32
_FIRST, _ALONE, _TOGETHER = b"F", b"A", b"T"


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """What is held against one message."""

    together: int = 0
    alone: int = 0
    last: float = 0.0
    """Seconds since 1970."""

    @property
    def deliveries(self) -> int:
        """How often it was delivered, with the first time, at which nothing is noted."""
        return 1 + self.together + self.alone


@dataclass(frozen=True)
class Part:
    """Messages to be handled in one go."""

    messages: Sequence[Message]
    digests: Sequence[str] = ()
    """Of those that came again."""
    alone: bool = False
    """The one message is a suspect."""
    verdict: BadMessage | None = None
    """What to make of it without decoding it: it ended its worker too often."""


def is_guilty(suspect: Suspect, max_deliveries: int) -> bool:
    """Whether it is handled no more: the first delivery and one in company prove nothing."""
    return suspect.alone >= max_deliveries - 2


def was_handling(layout: Layout, worker: int) -> bool:
    """Whether a worker that is dead now died of messages, as far as one can tell."""
    path = layout.suspects / f"w{worker}"
    return path.exists() and path.stat().st_size > 0


class Suspects:
    """What one worker knows of them, and tells."""

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
        self._known_path = layout.suspects / "known.json"
        self._known: dict[str, Suspect] = {}
        self._known_version: tuple[int, int] | None = None

    def note_the_dead(self) -> None:
        """Blame what the predecessor died of. Call it when nobody else can be this worker."""
        make_dirs(self._layout.suspects)
        path = self._layout.suspects / f"w{self._worker}"
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        with os.fdopen(descriptor, "r+b") as file:
            left = file.read()
            if not left:
                return
            self._note(left)
            file.truncate(0)

    def _note(self, left: bytes) -> None:
        digests = [
            left[start : start + _DIGEST_BYTES].hex()
            for start in range(1, len(left), _DIGEST_BYTES)
        ]
        if digests:
            log.warning(
                "worker %d died while it handled %d redelivered message(s); each is handled alone "
                "from now on",
                self._worker,
                len(digests),
            )
            self._update(blame=digests, alone=left[:1] == _ALONE)

    def parts(self, batch: Sequence[Message]) -> Iterator[Part]:
        """The batch in its order: each suspect by itself, and what lies between them together."""
        if not any(message.redelivered for message in batch):
            if batch:
                yield Part(batch)
            return
        known = self._read()
        digests = [
            hashlib.sha256(message.body).hexdigest() if message.redelivered else ""
            for message in batch
        ]
        for group in _groups(digests, known):
            suspect = known.get(digests[group.start])
            guilty = suspect is not None and is_guilty(suspect, self._max_deliveries)
            yield Part(
                batch[group.start : group.stop],
                [digest for digest in digests[group.start : group.stop] if digest],
                alone=suspect is not None,
                verdict=_verdict(suspect) if suspect is not None and guilty else None,
            )

    @contextmanager
    def trying(self, part: Part) -> Iterator[None]:
        """Handle a part within the block: decode, store, settle.

        Its redelivered messages stay written down if the process dies within, or is about to, of
        an unforeseen error.
        """
        path = self._layout.suspects / f"w{self._worker}"
        descriptor = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            kind = _ALONE if part.alone else _TOGETHER if part.digests else _FIRST
            os.write(descriptor, kind + bytes.fromhex("".join(part.digests)))
            try:
                yield
            except FuploaderError:
                os.ftruncate(descriptor, 0)
                raise
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
        if part.alone:
            self._update(forget=part.digests)

    def _read(self) -> dict[str, Suspect]:
        """All suspects, whoever found them."""
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
                log.warning("%s cannot be read, counting begins anew: %s", self._known_path, error)
                self._known = {}
            self._known_version = version
        return self._known

    def _update(
        self, *, blame: Collection[str] = (), alone: bool = False, forget: Collection[str] = ()
    ) -> None:
        lock = FileLock(self._layout.suspects_lock)
        lock.wait()
        try:
            now = self._clock()
            known = {
                # the clock may have been set back: what is in the future counts as now
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
        finally:
            lock.release()


def _groups(digests: Sequence[str], known: Collection[str]) -> Iterator[range]:
    """Ranges in their order: each suspect by itself, and what lies between them together."""
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
        f"handling it ended the worker process: delivered {suspect.deliveries} times, "
        f"the last {suspect.alone} decoded alone",
        hint="the parser crashed, ran out of memory or hung, says the log of the workers; correct "
        "it, then `fuploader dead-letters requeue`",
    )
