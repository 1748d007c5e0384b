"""Draining: from the queue to sealed slots, in one worker process.

What must always hold, in this order for each batch:

    receive -> decode -> dead letters durable -> slots durable -> settle -> record -> seal

Nothing is settled before it is durable, and everything received is settled or given back. What the
queue delivers again may be stored already, here or by another worker: it is looked for in the
`dedup_window`, in a turn of its own (`commit_turns`), and settled without a second copy.

Without room on the disk (`disk_space`) the queue is let go until there is some; meanwhile slots are
sealed and claims renewed as ever, so that what is there can be shipped. Trouble (broker, state
store, disk) ends the session: what was not settled goes back to the queue, the worker says what is
wrong, pauses, and starts again from what is on disk. The pauses grow. Only a slot that another
process still holds is retried quickly: that process is usually about to exit.

How much of the queue a worker has in hand is `in_hand`; which messages may end it, and are handled
alone, is `suspects`; what goes on while a parser takes its time is `meanwhile`.
"""

from __future__ import annotations

import hashlib
import logging
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fuploader_dagster.contracts.source import CommittedBatch, Message, MessageSource
from fuploader_dagster.contracts.state import Commit, StateStore
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.disk.root_id import root_id
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import BadMessage, DiskFull, FuploaderError, SlotInUse
from fuploader_dagster.intake.dead_letter_dedup import without_kept
from fuploader_dagster.intake.dead_letters import DeadLetter, DeadLetterBox
from fuploader_dagster.intake.disk_space import SpaceWatch
from fuploader_dagster.intake.in_hand import DECODE_SECONDS, InHand
from fuploader_dagster.intake.lease import Lease
from fuploader_dagster.intake.meanwhile import Meanwhile
from fuploader_dagster.intake.owned_slots import OwnedSlots
from fuploader_dagster.intake.worker_status import StatusReport
from fuploader_dagster.processing.decoder import Decoder, File
from fuploader_dagster.processing.poison import Part, Suspects
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.commit_turns import CommitTurns, Look
from fuploader_dagster.slots.dedup_window import DedupWindow
from fuploader_dagster.slots.sealing import Reason, sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner

log = logging.getLogger(__name__)

CLAIM_SECONDS = 30.0
"""How long a claim outlives its last renewal."""
HOUSEKEEPING_SECONDS = 1.0
WORK_OFF_SECONDS = 5.0
"""How long a leaving worker goes on with what it has in hand, instead of giving it back: about
twice what that should take."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
HANDOVER_PAUSE_SECONDS = 0.25
STANDBY_PAUSE_SECONDS = 1.0
HANDOVER_TRIES = 40
ROOM_SECONDS = 1.0
"""Looking for room costs nothing, so a pause for lack of it does not grow."""
MESSAGES_WAIT = "messages wait in the queue meanwhile"
DEAD_LETTERS_LOGGED_EVERY_SECONDS = 10.0
_NO_QUOTA = 1 << 62


class Drain:
    """One worker's drain. `run` returns when the lease is over or the quota is used up."""

    def __init__(
        self,
        pipeline: Intake,
        worker: int,
        *,
        source: MessageSource,
        state: StateStore,
        lease: Lease,
    ) -> None:
        self.pipeline = pipeline
        self.layout = pipeline.layout
        self.state = state
        self.lease = lease
        self.report = StatusReport(self.layout, worker)
        self.status = self.report.status
        self._slots = OwnedSlots(pipeline, worker)
        self._in_hand = InHand(source, pipeline, lease)
        self._decoder = Decoder(pipeline, alarm=_alarm)
        self._suspects = Suspects(self.layout, worker, max_deliveries=pipeline.max_deliveries)
        self._dead_letters = DeadLetterBox(self.layout, worker)
        self._window = DedupWindow(self.layout, pipeline.dedup_window_messages)
        self._turns = CommitTurns(self.layout, worker, prefetch=pipeline.prefetch_count)
        self._space = SpaceWatch(pipeline)
        self._meanwhile = Meanwhile(self._stay_alive)
        self._root_id = ""
        self._housekeeping_at = 0.0
        self._renewed_at = 0.0
        """When all claims were renewed; a commit renews that of its own slot only."""
        self._seal_requested_at = 0.0
        self._dead_logged_at = 0.0
        self._dead_logged = 0
        self._batch_bytes = 0

    def run(self) -> None:
        """Drain; after trouble pause and start again, as long as the lease runs."""
        troubles = 0
        self.report.doing("starting")
        while not self._finished():
            handled = self.status.messages
            try:
                with naming_disk_trouble(self.layout.root):
                    self._session()
            except FuploaderError as error:
                if isinstance(error, DiskFull):
                    self._space.disk_was_full(self._batch_bytes)
                troubles = troubles + 1 if self.status.messages == handled else 1
                self._pause(error, troubles)
        self._meanwhile.close()
        self._decoder.close()
        self.report.remove()

    def _pause(self, error: FuploaderError, troubles: int) -> None:
        if isinstance(error, SlotInUse):
            pause = HANDOVER_PAUSE_SECONDS if troubles < HANDOVER_TRIES else STANDBY_PAUSE_SECONDS
        else:
            pause = pause_seconds(troubles, random.random())  # noqa: S311  jitter, no secret
        if self.status.problem != str(error) or not isinstance(error, SlotInUse):
            log.warning("draining paused for %.1f s: %s", pause, error)
        self.report.doing("trouble", error)
        self.lease.wait(pause)

    def _finished(self) -> bool:
        return bool(self.lease.over()) or self._quota() <= 0 or self._decoder.exhausted

    def _quota(self) -> int:
        """How many more messages this worker may handle."""
        quota = self.pipeline.max_tasks_per_child
        return quota - self.status.messages if quota else _NO_QUOTA

    def _session(self) -> None:
        self._wait_for_space()
        if self._finished():
            return
        make_dirs(self.layout.root)
        self._root_id = root_id(self.layout)
        with self._closing_connections(), self._opened_slots(), self._turns:
            self._suspects.note_the_dead()
            self._seal_due()  # what became due while there was trouble with the queue
            while not self._finished():
                if self._wait_for_space():
                    continue
                self._consume()
                most = self._slots.left_in_turn
                self._handle(self._in_hand.next_batch(most, quota=self._quota()))
                self._seal_due()
                self._keep_house()
            self._leave()

    def _consume(self) -> None:
        if not self._in_hand.consuming:
            self._in_hand.open()
            self.lease.in_hand = True
            self.report.doing("draining")

    def _let_go_of_queue(self) -> None:
        self.lease.in_hand = False
        self._in_hand.close()

    def _wait_for_space(self) -> bool:
        """Return when there is room, or the lease is over; says whether that took a pause."""
        sentence = self._space.shortage()
        if not sentence:
            return False
        log.warning("draining paused: %s", sentence)
        self._let_go_of_queue()
        while sentence and not self._finished():
            self.report.doing("paused", DiskFull(sentence, hint=MESSAGES_WAIT))
            self.lease.wait(ROOM_SECONDS)
            self._seal_due()
            self._keep_house()
            sentence = self._space.shortage()
        if not sentence:
            log.info("draining goes on: there is room again")
        return True

    @contextmanager
    def _closing_connections(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._let_go_of_queue()
            self.state.close()

    @contextmanager
    def _opened_slots(self) -> Iterator[None]:
        """Lock, claim and recover the slots of this worker, and tell the state what they hold."""
        self.state.open()
        # Before the slots are locked: who asks after that finds them locked and counts on us.
        self._seal_requested_at = self._seal_request()
        with self._slots.opened(self.state):
            self.state.claim(self._slots.numbers, self._root_id, CLAIM_SECONDS)
            reached(CrashPoint.SLOTS_CLAIMED)
            self.state.add_sealed(sealed_partitions(self.layout))
            reached(CrashPoint.SEALED_FOUND)
            self._record(self._slots.counts())
            yield

    def _handle(self, batch: Sequence[Message]) -> None:
        """Commit a batch, or as much of it as is enough for one commit."""
        done = 0
        for part in self._suspects.parts(batch):
            committed = self._commit(part)
            done += committed
            if committed < len(part.messages) or self._decoder.exhausted:
                break
        self._in_hand.put_back(batch[done:])

    def _commit(self, part: Part) -> int:
        """Decode, store and settle messages; of the first ones only, if they are enough.

        Returns how many. A part of suspects stays written down if this ends the process.
        """
        dead: list[tuple[Message, BadMessage]] = []
        stored = stored_bytes = 0
        with self._suspects.trying(part):
            files = self._decode(part)
            batch = part.messages[: len(files)]
            self._batch_bytes = sum(len(message.body) for message in batch)
            slot = self._slots.take_turn(len(batch))
            with self._turn(batch) as look:
                for message, file in zip(batch, files, strict=True):
                    if isinstance(file, BadMessage):
                        dead.append((message, file))
                        continue
                    if self._is_stored(message, file, look):
                        continue
                    try:
                        added = slot.add(file.name, file.content)
                    except BadMessage as error:  # the file system refuses its name
                        dead.append((message, error))
                        continue
                    if added:
                        stored += 1
                        stored_bytes += len(file.content)
                self._batch_bytes += stored_bytes
                letters = self._letters(dead, look)
                self._dead_letters.keep(letters)
                slot.commit()
            bad = [message for message, _ in dead]
            self._in_hand.settle(CommittedBatch(batch[-1], len(batch), bad))
            reached(CrashPoint.SETTLED)
        duplicates = len(batch) - stored - len(letters)
        self._count(len(batch), stored_bytes, duplicates, letters)
        commit = Commit(
            slots=[slot.count],
            stored_messages=stored,
            stored_bytes=stored_bytes,
            duplicates=duplicates,
            dead_letters=len(letters),
        )
        self._record(commit)
        return len(batch)

    def _decode(self, part: Part) -> list[File | BadMessage]:
        if part.verdict is not None:
            return [part.verdict]
        if not self._decoder.may_take_long:
            return self._decoder.decode(part.messages, most_bytes=self.pipeline.commit_bytes)
        began = time.monotonic()
        with self._meanwhile.allowed():
            files = self._decoder.decode(
                part.messages, most_bytes=self.pipeline.commit_bytes, most_seconds=DECODE_SECONDS
            )
        self._in_hand.pace.decoded(len(files), time.monotonic() - began)
        return files

    def _stay_alive(self) -> None:
        """What cannot wait while a parser takes its time. Called by another thread."""
        self._in_hand.keep_alive()
        self._renew_claims()

    @contextmanager
    def _turn(self, batch: Sequence[Message]) -> Iterator[Look]:
        """Around a commit: which of the messages have to be looked for, with a window to do it."""
        if not self.pipeline.dedup_window_messages:
            yield "for none"
            return
        redelivered = any(message.redelivered for message in batch)
        if redelivered:  # the first time takes seconds, in which the others need not wait
            self._window.refresh()
        with self._turns.turn(len(batch), redelivered=redelivered) as look:
            if look != "for none":
                self._window.refresh()
            yield look

    def _is_stored(self, message: Message, file: File, look: Look) -> bool:
        """Whether a message that may be a second copy is one."""
        if look == "for none" or not (message.redelivered or look == "for all"):
            return False
        return self._window.holds(file.name, hashlib.sha256(file.content).digest())

    def _letters(self, dead: Sequence[tuple[Message, BadMessage]], look: Look) -> list[DeadLetter]:
        """What is still to be written: a message that came again may have its letter already."""
        describe = self._in_hand.source.describe
        letters = [self._dead_letters.letter(*pair, describe) for pair in dead]
        if look == "for none":
            return letters
        in_hand, every = self.pipeline.prefetch_count, look == "for all"
        return without_kept(letters, self.layout, in_hand, all_may_be_kept=every)

    def _count(
        self, handled: int, size: int, duplicates: int, letters: Sequence[DeadLetter]
    ) -> None:
        self.status.messages += handled
        self.status.stored_bytes += size
        self.status.duplicates += duplicates
        self.status.dead_letters += len(letters)
        if letters:
            self.status.last_dead_reason = letters[-1].reason

    def _record(self, commit: Commit) -> None:
        self.state.record(commit, root_id=self._root_id, ttl_seconds=CLAIM_SECONDS)
        reached(CrashPoint.PARTITION_PUSHED if commit.sealed else CrashPoint.RECORDED)
        if len(commit.slots) == len(self._slots.numbers):
            self._renewed_at = time.monotonic()

    def _seal_due(self) -> None:
        for slot in self._slots:
            reason = slot.due()
            if reason is not None:
                self._seal(slot, reason)

    def _seal(self, slot: SlotOwner, reason: Reason) -> None:
        sealed = slot.seal(reason)
        if sealed is not None:
            self.status.sealed += 1
            self._space.backlog_grew()
            self._record(Commit(slots=[slot.count], sealed=[sealed.seal.partition]))

    def _keep_house(self) -> None:
        """What is due about once a second: the status file, seal requests, the claims, the
        queue's heartbeats.
        """
        now = time.monotonic()
        if now - self._housekeeping_at < HOUSEKEEPING_SECONDS:
            return
        self._housekeeping_at = now
        self.report.write()
        self._log_dead_letters(now)
        requested_at = self._seal_request()
        if requested_at not in (0.0, self._seal_requested_at):  # earlier: the clock was set back
            self._seal_requested_at = requested_at
            for slot in self._slots:
                self._seal(slot, "request")
        self._stay_alive()

    def _renew_claims(self) -> None:
        if self._slots and time.monotonic() - self._renewed_at > CLAIM_SECONDS / 3:
            self._record(self._slots.counts())

    def _log_dead_letters(self, now: float) -> None:
        """Once in a while, however many there are: a flood of them must not flood the log."""
        new = self.status.dead_letters - self._dead_logged
        often = now - self._dead_logged_at < DEAD_LETTERS_LOGGED_EVERY_SECONDS
        if new and (not often or self._finished()):
            self._dead_logged_at, self._dead_logged = now, self.status.dead_letters
            reason = self.status.last_dead_reason
            log.warning("%d messages became dead letters, the last one because %s", new, reason)

    def _seal_request(self) -> float:
        """When it was made; 0 if there is none."""
        request = self.layout.seal_request
        return request.stat().st_mtime if request.exists() else 0.0

    def _leave(self) -> None:
        reason = self.lease.over()
        log.info("worker %d leaves: %s", self.status.worker, reason or self._used_up())
        self.report.doing("leaving")
        self._work_off()
        self._log_dead_letters(time.monotonic())
        if reason and self.pipeline.residue_file_upload:
            for slot in self._slots:
                self._seal(slot, "shutdown")
        self.state.release(self._slots.numbers, self._root_id)
        reached(CrashPoint.SLOTS_RELEASED)

    def _work_off(self) -> None:
        """Handle what is in hand already: given back, it would count as delivered once more."""
        if not self._in_hand.consuming or self._decoder.exhausted:
            return
        self.lease.in_hand = False  # the broker may hang, and then there is nothing to wait for
        self._in_hand.stop_taking()
        self.lease.in_hand = True
        until = time.monotonic() + WORK_OFF_SECONDS
        while time.monotonic() < until and not self._decoder.exhausted:
            batch = self._in_hand.last_batch()
            if not batch:
                break
            self._handle(batch)

    def _used_up(self) -> str:
        return "its memory is used up" if self._decoder.exhausted else "its quota is used up"


def _alarm(seconds: float) -> None:
    """Have the kernel end this process (SIGALRM) after that time; 0: not any more.

    Nothing else helps against a function that keeps the interpreter's lock.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)


def pause_seconds(troubles: int, jitter: float) -> float:
    """How long to pause after so many troubles in a row; `jitter` from 0 to 1."""
    pause = FIRST_PAUSE_SECONDS * 2.0 ** min(troubles - 1, 16)
    return min(pause, LONGEST_PAUSE_SECONDS) * (0.75 + jitter / 2)
