"""Suspects: messages whose decoding may have ended a worker, and how often each was delivered.

The trouble: a parser that crashes the process, eats all memory or never returns takes the worker
with it, the queue delivers the message again, and the next worker dies of it too. No exception
tells which message it was.

What must always hold: a message that ends its worker at each delivery becomes a dead letter at the
delivery behind `max_deliveries`, without being decoded again, and everything else flows; no message
becomes a dead letter for having been in the same batch, or for one death of its worker alone.

How. What comes for the first time is decoded as ever. Redelivered messages may be why the last
worker died: their digests are written down while they are decoded, and struck out behind it. A
worker finds what its dead predecessor had written down:

- many together: each of them is a suspect from now on, and is decoded alone;
- one alone: that one it was. The deliveries are counted.

A suspect that was decoded is none any more. Nothing is synced: the page cache outlives a process,
and after a power cut counting begins anew.

Format, in `suspects/`: `w{worker}` holds what this worker is decoding: `A` (alone) or `T`
(together), then 32 bytes of SHA-256 for each body; empty between two attempts. `known.json` is an
object of suspects, by their digest in hex: how many workers each has ended together with others
and alone, and when it did last.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import msgspec

from fuploader_dagster.decoding import Decoder, File
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.fileio import FileLock, make_dirs, write_for_readers
from fuploader_dagster.layout import Layout
from fuploader_dagster.source import Message

log = logging.getLogger(__name__)

FORGOTTEN_AFTER_SECONDS = 7 * 86_400.0
"""A suspect that did not come again for so long was taken out of the queue by somebody."""
_DIGEST_BYTES = 32
_ALONE, _TOGETHER = b"A", b"T"


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


def is_guilty(suspect: Suspect, max_deliveries: int) -> bool:
    """Whether it is decoded no more: the first delivery and one in company prove nothing."""
    return suspect.alone >= max_deliveries - 2


def was_decoding(layout: Layout, worker: int) -> bool:
    """Whether a worker that is dead now died of redelivered messages, as far as one can tell."""
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
        self._guilty: set[str] = set()

    def note_the_dead(self) -> None:
        """Blame what the predecessor died of. Call it when nobody else can be this worker."""
        make_dirs(self._layout.suspects)
        path = self._layout.suspects / f"w{self._worker}"
        left = path.read_bytes() if path.exists() else b""
        if not left:
            return
        digests = [
            left[start : start + _DIGEST_BYTES].hex()
            for start in range(1, len(left), _DIGEST_BYTES)
        ]
        alone = left[:1] == _ALONE
        log.warning(
            "worker %d died while it decoded %d redelivered message(s); each is decoded alone now",
            self._worker,
            len(digests),
        )
        self._update(blame=digests, alone=alone)
        path.write_bytes(b"")

    def decode(self, batch: Sequence[Message], decoder: Decoder) -> list[File | BadMessage]:
        """As `Decoder.decode` does, with suspects alone and guilty ones not at all."""
        if not any(message.redelivered for message in batch):
            return decoder.decode(batch)
        known = self._read()
        digests = [
            hashlib.sha256(message.body).hexdigest() if message.redelivered else ""
            for message in batch
        ]
        results: list[File | BadMessage] = []
        acquitted: list[str] = []
        for group in _groups(digests, known):
            suspect = known.get(digests[group.start])
            if suspect is not None and is_guilty(suspect, self._max_deliveries):
                self._guilty.add(digests[group.start])
                results.append(_verdict(suspect))
                continue
            with self._trying([one for one in digests[group.start : group.stop] if one], suspect):
                results += decoder.decode(batch[group.start : group.stop])
            if suspect is not None:
                acquitted.append(digests[group.start])
            if decoder.exhausted:
                break
        if acquitted:
            self._update(forget=acquitted)
        return results

    def settled(self) -> None:
        """The guilty ones among the last batch are durable dead letters and out of the queue."""
        if self._guilty:
            self._update(forget=self._guilty)
            self._guilty.clear()

    @contextmanager
    def _trying(self, digests: Sequence[str], suspect: Suspect | None) -> Iterator[None]:
        """Stays written down if the process dies within, or is about to, of an unforeseen error."""
        if not digests:
            yield
            return
        kind = _TOGETHER if suspect is None else _ALONE
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(self._layout.suspects / f"w{self._worker}", flags, 0o644)
        try:
            os.write(descriptor, kind + bytes.fromhex("".join(digests)))
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, Suspect]:
        """All suspects, whoever found them."""
        try:
            stat = self._known_path.stat()
        except FileNotFoundError:
            return {}
        version = (stat.st_ino, stat.st_mtime_ns)
        if version != self._known_version:
            content = self._known_path.read_bytes()
            try:
                self._known = msgspec.json.decode(content, type=dict[str, Suspect])
            except msgspec.DecodeError as error:  # a power cut: it is not synced
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
                digest: one
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
        f"decoding it ended the worker process: delivered {suspect.deliveries} times, "
        f"the last {suspect.alone} decoded alone",
        hint="the parser crashed, ran out of memory or hung; correct it, then requeue",
    )
