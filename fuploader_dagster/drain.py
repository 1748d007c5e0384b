"""Draining: from the queue to sealed slots, in one worker process.

What must always hold, in this order for each batch:

    receive -> decode -> dead letters durable -> slots durable -> settle -> record -> seal

Nothing is settled before it is durable, and everything received is settled or given back. What the
queue delivers again may be stored already, here or by another worker: it is looked for in the
`dedup_window`, in a turn of its own (`commit_turns`), and settled without a second copy.

Without room on the disk (`room`) the queue is let go until there is some; meanwhile slots are
sealed and claims renewed as ever, so that what is there can be shipped. Trouble (broker, state
store, disk) ends the session: what was not settled goes back to the queue, the worker says what is
wrong, pauses, and begins anew from what is on disk. The pauses grow; only a slot that somebody else
still writes is looked at often, because he is mostly just leaving.
"""

from __future__ import annotations

import hashlib
import logging
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fuploader_dagster.commit_turns import CommitTurns, Look
from fuploader_dagster.config import Intake
from fuploader_dagster.dead_letters import DeadLetter, DeadLetterBox
from fuploader_dagster.decoding import Decoder, File
from fuploader_dagster.dedup_window import DedupWindow
from fuploader_dagster.disk_trouble import naming_disk_trouble
from fuploader_dagster.errors import BadMessage, DiskFull, FuploaderError, SlotInUse
from fuploader_dagster.fileio import make_dirs
from fuploader_dagster.kept_letters import without_kept
from fuploader_dagster.lease import Lease
from fuploader_dagster.room import RoomWatch
from fuploader_dagster.root_id import root_id
from fuploader_dagster.sealing import Reason, sealed_partitions
from fuploader_dagster.slots import Slot
from fuploader_dagster.source import CommittedBatch, Message, MessageSource
from fuploader_dagster.state import Commit, StateStore
from fuploader_dagster.steps import Step, reached
from fuploader_dagster.suspects import Suspects
from fuploader_dagster.worker_status import StatusReport

log = logging.getLogger(__name__)

CLAIM_SECONDS = 30.0
"""How long a claim outlives its last renewal."""
HOUSEKEEPING_SECONDS = 1.0
RECEIVE_SECONDS = 0.25
"""Longest wait for a message, and so for noticing the end of the lease."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
HANDOVER_PAUSE_SECONDS = 0.25
STANDBY_PAUSE_SECONDS = 1.0
HANDOVER_TRIES = 40
ROOM_SECONDS = 1.0
"""Looking for room costs nothing, so a pause for lack of it does not grow."""
MESSAGES_WAIT = "messages wait in the queue meanwhile"
DEAD_LETTERS_LOGGED_EVERY_SECONDS = 10.0
MAX_REASON_CHARACTERS = 500


class Drain:
    """One worker's drain. `run` returns when the lease is over or the quota is used up."""

    def __init__(
        self,
        settings: Intake,
        worker: int,
        *,
        source: MessageSource,
        state: StateStore,
        lease: Lease,
    ) -> None:
        self.settings = settings
        self.layout = settings.layout
        self.source = source
        self.state = state
        self.lease = lease
        self.report = StatusReport(self.layout, worker)
        self.status = self.report.status
        self._owned = settings.slots_of(worker)
        self._decoder = Decoder(settings, alarm=_alarm)
        self._suspects = Suspects(self.layout, worker, max_deliveries=settings.max_deliveries)
        self._dead_letters = DeadLetterBox(self.layout, worker)
        self._window = DedupWindow(self.layout, settings.dedup_window_messages)
        self._turns = CommitTurns(self.layout, worker, prefetch=settings.prefetch_count)
        self._root_id = ""
        self._housekeeping_at = 0.0
        self._renewed_at = 0.0
        """When all claims were renewed; a commit renews that of its own slot only."""
        self._slot_turn = self._batched = 0
        self._seal_requested_at = 0.0
        self._dead_logged_at = 0.0
        self._dead_logged = 0
        self._room = RoomWatch(settings)
        self._consuming = False
        self._batch_bytes = 0

    def run(self) -> None:
        """Drain; after trouble pause and begin anew, as long as the lease runs."""
        troubles = 0
        self.report.doing("starting")
        while not self._finished():
            handled = self.status.messages
            try:
                with naming_disk_trouble(self.layout.root):
                    self._session()
            except FuploaderError as error:
                if isinstance(error, DiskFull):
                    self._room.disk_was_full(self._batch_bytes)
                troubles = troubles + 1 if self.status.messages == handled else 1
                self._pause(error, troubles)
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
        quota = self.settings.max_tasks_per_child
        used_up = 0 < quota <= self.status.messages
        return bool(self.lease.over()) or used_up or self._decoder.exhausted

    def _session(self) -> None:
        self._wait_for_room([])
        if self._finished():
            return
        make_dirs(self.layout.root)
        self._root_id = root_id(self.layout)
        with self._closing_parts(), self._slots() as slots, self._turns:
            self._suspects.note_the_dead()
            self._seal_due(slots)  # what became due while there was trouble with the queue
            while not self._finished():
                if self._wait_for_room(slots):
                    continue
                self._consume()
                batch = self._receive_batch()
                if batch:
                    self._commit(batch, slots)
                self._seal_due(slots)
                self._keep_house(slots)
            self._leave(slots)

    def _consume(self) -> None:
        if not self._consuming:
            self.source.open()
            self._consuming = self.lease.in_hand = True
            self.report.doing("draining")

    def _let_go_of_queue(self) -> None:
        self._consuming = self.lease.in_hand = False
        self.source.close()

    def _wait_for_room(self, slots: Sequence[Slot]) -> bool:
        """Return when there is room, or the lease is over; says whether that took a pause."""
        sentence = self._room.shortage()
        if not sentence:
            return False
        log.warning("draining paused: %s", sentence)
        self._let_go_of_queue()
        while sentence and not self._finished():
            self.report.doing("paused", DiskFull(sentence, hint=MESSAGES_WAIT))
            self.lease.wait(ROOM_SECONDS)
            self._seal_due(slots)
            self._keep_house(slots)
            sentence = self._room.shortage()
        if not sentence:
            log.info("draining goes on: there is room again")
        return True

    @contextmanager
    def _closing_parts(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._let_go_of_queue()
            self.state.close()

    @contextmanager
    def _slots(self) -> Iterator[Sequence[Slot]]:
        """Lock, claim and recover the slots of this worker, and tell the state what they hold."""
        self.state.open()
        # Before the slots are locked: who asks after that finds them locked and counts on us.
        self._seal_requested_at = self._seal_request()
        with ExitStack() as stack:
            slots = [
                stack.enter_context(
                    Slot(self.settings, slot, highest_number=self.state.highest_number(slot))
                )
                for slot in self._owned
            ]
            self.state.claim(self._owned, self._root_id, CLAIM_SECONDS)
            reached(Step.SLOTS_CLAIMED)
            self.state.add_sealed(sealed_partitions(self.layout))
            reached(Step.SEALED_FOUND)
            self._record(Commit(slots=[slot.count for slot in slots]))
            yield slots

    def _receive_batch(self) -> list[Message]:
        """Messages for one commit: full, or as old as the flush interval, or all there are."""
        batch: list[Message] = []
        size, due_at = 0, 0.0
        while len(batch) < self.settings.commit_messages and size < self.settings.commit_bytes:
            received = self.source.receive(
                self.settings.commit_messages - len(batch), RECEIVE_SECONDS
            )
            if received and not batch:
                due_at = time.monotonic() + self.settings.flush_interval_seconds
            batch += received
            size += sum(len(message.body) for message in received)
            if not received or time.monotonic() >= due_at or self.lease.over():
                break
        return batch

    def _commit(self, batch: Sequence[Message], slots: Sequence[Slot]) -> None:
        dead: list[tuple[Message, BadMessage]] = []
        stored = stored_bytes = 0
        files = self._suspects.decode(batch, self._decoder)
        batch = batch[: len(files)]
        self._batch_bytes = sum(len(message.body) for message in batch)
        slot = self._next_slot(slots, len(batch))
        with self._turn(batch) as look:
            for message, file in zip(batch, files, strict=True):
                if isinstance(file, BadMessage):
                    dead.append((message, file))
                elif self._is_stored(message, file, look):
                    continue
                elif slot.add(file.name, file.content):
                    stored += 1
                    stored_bytes += len(file.content)
            self._batch_bytes += stored_bytes
            letters = self._letters(dead, look)
            self._dead_letters.keep(letters)
            slot.commit()
        self.source.settle(CommittedBatch(batch[-1], len(batch), [message for message, _ in dead]))
        reached(Step.SETTLED)
        self._suspects.settled()
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

    def _next_slot(self, slots: Sequence[Slot], messages: int) -> Slot:
        """One slot for the whole batch: a commit costs the same however many slots there are.

        The next slot has its turn after a full batch: a slow queue fills one, not all of them.
        """
        if self._batched >= self.settings.commit_messages:
            self._slot_turn, self._batched = (self._slot_turn + 1) % len(slots), 0
        self._batched += messages
        return slots[self._slot_turn]

    @contextmanager
    def _turn(self, batch: Sequence[Message]) -> Iterator[Look]:
        """Around a commit: which of the messages have to be looked for, with a window to do it."""
        if not self.settings.dedup_window_messages:
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
        letters = [
            DeadLetter(
                time=self._dead_letters.now(),
                reason=str(error)[:MAX_REASON_CHARACTERS],
                redelivered=message.redelivered,
                message_id=message.message_id,
                attributes=self.source.describe(message),
                body=message.body,
            )
            for message, error in dead
        ]
        if look == "for none":
            return letters
        in_hand, every = self.settings.prefetch_count, look == "for all"
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
        reached(Step.PARTITION_PUSHED if commit.sealed else Step.RECORDED)
        if len(commit.slots) == len(self._owned):
            self._renewed_at = time.monotonic()

    def _seal_due(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            reason = slot.due()
            if reason is not None:
                self._seal(slot, reason)

    def _seal(self, slot: Slot, reason: Reason) -> None:
        sealed = slot.seal(reason)
        if sealed is not None:
            self.status.sealed += 1
            self._room.backlog_grew()
            self._record(Commit(slots=[slot.count], sealed=[sealed.seal.partition]))

    def _keep_house(self, slots: Sequence[Slot]) -> None:
        """What is due about once a second: the status file, seal requests, the claims."""
        now = time.monotonic()
        if now - self._housekeeping_at < HOUSEKEEPING_SECONDS:
            return
        self._housekeeping_at = now
        self.report.write()
        self._log_dead_letters(now)
        requested_at = self._seal_request()
        if requested_at > self._seal_requested_at:
            self._seal_requested_at = requested_at
            for slot in slots:
                self._seal(slot, "request")
        if slots and now - self._renewed_at > CLAIM_SECONDS / 3:
            self._record(Commit(slots=[slot.count for slot in slots]))

    def _log_dead_letters(self, now: float) -> None:
        """Once in a while, however many there are: a flood of them must not flood the log."""
        new = self.status.dead_letters - self._dead_logged
        often = now - self._dead_logged_at < DEAD_LETTERS_LOGGED_EVERY_SECONDS
        if new and (not often or self._finished()):
            self._dead_logged_at, self._dead_logged = now, self.status.dead_letters
            reason = self.status.last_dead_reason
            log.warning("%d messages became dead letters, the last one because %s", new, reason)

    def _seal_request(self) -> float:
        request = self.layout.seal_request
        return request.stat().st_mtime if request.exists() else 0.0

    def _leave(self, slots: Sequence[Slot]) -> None:
        reason = self.lease.over()
        log.info("worker %d leaves: %s", self.status.worker, reason or self._used_up())
        self.report.doing("leaving")
        self._log_dead_letters(time.monotonic())
        if reason and self.settings.residue_file_upload:
            for slot in slots:
                self._seal(slot, "shutdown")
        self.state.release(self._owned, self._root_id)
        reached(Step.SLOTS_RELEASED)

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
