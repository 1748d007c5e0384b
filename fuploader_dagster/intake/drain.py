"""Draining: from the queue to sealed slots, in one worker process.

What must always hold, in this order for each batch:

    receive -> decode -> dead letters durable -> slots durable -> settle -> record -> seal

Nothing is settled before it is durable, and everything received is settled or given back. A message
that the queue delivers again may be stored already, here or by another worker: the worker looks for
it first, and settles it without a second copy (`redeliveries`).

The hand-over to Dagster: the worker writes the partition key of each slot that it seals, and at its
start those of all sealed slots on this disk, into the state store's list of sealed slots. The drain
sensor (`sensors/drain_sensor.py`, `waiting_list.py`) reads that list, registers the keys as dynamic
partitions, requests runs for them, and then takes the keys off the list.

Without room on the disk (`disk_space`) the worker lets go of the queue until there is room again.
Meanwhile it goes on sealing slots and renewing claims, so that what is stored can be shipped.
Trouble (broker, state store, disk) ends the session: unsettled messages go back to the queue, the
worker says what is wrong, pauses (`pauses`), and starts again from what is on disk.

Another machine, or another copy of this storage root, may take the slots over once the claims on
them were not renewed for `CLAIM_SECONDS`. Each `record` compares and renews them, so that costs
nothing; if the last one is that old, they are compared before a commit or a seal as well.

While somebody has paused the intake (`hold`) it does the same, after it has committed what it has
in hand: outside of the queue, no limit of deliveries and no idle time counts.

How many messages a worker has in hand is decided in `in_hand`; which messages may end the worker,
and are handled alone, in `poison`; what cannot wait while a parser takes its time is in
`meanwhile`.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from fuploader_dagster.contracts.source import CommittedBatch, Message, MessageSource
from fuploader_dagster.contracts.state import Commit, StateStore
from fuploader_dagster.dead_letters.letters import DeadLetter, DeadLetterBox
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.disk.place import running_seconds
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import BadMessage, DiskFull, FuploaderError, SlotInUse
from fuploader_dagster.intake.disk_space import SpaceWatch
from fuploader_dagster.intake.hold import Hold
from fuploader_dagster.intake.in_hand import DECODE_SECONDS, InHand
from fuploader_dagster.intake.kept_headers import KeptHeaders
from fuploader_dagster.intake.lease import Lease
from fuploader_dagster.intake.meanwhile import Meanwhile
from fuploader_dagster.intake.pauses import pause_after
from fuploader_dagster.intake.redeliveries import Redeliveries
from fuploader_dagster.intake.worker_status import StatusReport
from fuploader_dagster.processing.decoder import Decoder, File
from fuploader_dagster.processing.poison import Attempt, Suspects
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.commit_turns import Look
from fuploader_dagster.slots.owned_slots import OwnedSlots
from fuploader_dagster.slots.sealing import Reason, sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner

log = logging.getLogger(__name__)

CLAIM_SECONDS = 15.0
"""How long a claim outlives its last renewal. After that, a machine to which the disk of a dead one
was attached continues."""
HOUSEKEEPING_SECONDS = 1.0
WORK_OFF_SECONDS = 5.0
"""How long a leaving worker may take to commit what it has in hand instead of giving it back: about
twice what that should take."""
LOOK_SECONDS = 1.0
"""Between two looks at a full disk or a pause. A look costs little, so this does not grow."""
DEAD_LETTERS_LOGGED_EVERY_SECONDS = 10.0


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
        despite_pause: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.layout = pipeline.layout
        self.state = state
        self.lease = lease
        self.report = StatusReport(self.layout, worker)
        self.status = self.report.status
        self._slots = OwnedSlots(pipeline, pipeline.slots_of(worker))
        self._in_hand = InHand(source, pipeline, lease)
        self._decoder = Decoder(pipeline, alarm=_alarm)
        self._kept_headers = KeptHeaders(source, pipeline.headers) if pipeline.headers else None
        self._suspects = Suspects(self.layout, worker, max_deliveries=pipeline.max_deliveries)
        self._dead_letters = DeadLetterBox(self.layout, worker)
        self._redeliveries = Redeliveries(pipeline, worker, source)
        self._space = SpaceWatch(pipeline)
        self._hold = Hold(self.layout, obeyed=not despite_pause)
        self._meanwhile = Meanwhile(self._stay_alive)
        self._housekeeping_at = 0.0
        self._renewed_at = 0.0
        """When all claims were renewed, in `running_seconds`; a commit renews that of its own slot
        only."""
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
        pause = pause_after(error, troubles)
        if self.status.problem != str(error) or not isinstance(error, SlotInUse):
            log.warning("draining paused for %.1f s: %s", pause, error)
        self.report.doing("trouble", error)
        self.lease.wait(pause)

    def _finished(self) -> bool:
        return bool(self.lease.over()) or self._quota() <= 0 or self._decoder.exhausted

    def _quota(self) -> int:
        """How many more messages this worker may handle."""
        quota = self.pipeline.max_tasks_per_child
        return quota - self.status.messages if quota else 1 << 62

    def _session(self) -> None:
        self._wait_for_space()
        if self._finished():
            return
        make_dirs(self.layout.root)
        with (
            closing(self.state),
            closing(self._in_hand),
            self._opened_slots(),
            self._redeliveries.opened(),
        ):
            self._suspects.blame_after_crash()
            self._seal_due()  # what became due while there was trouble with the queue
            while not self._finished():
                if self._wait_for_space() or self._wait_while_paused():
                    continue
                if not self._in_hand.consuming:
                    self._in_hand.open()
                    self.report.doing("draining")
                most = self._slots.left_in_turn
                self._handle(self._in_hand.next_batch(most, quota=self._quota()))
                self._seal_due()
                self._keep_house()
            self._leave()

    def _wait_for_space(self) -> bool:
        """Return when there is room, or the worker is finished; True if that took a pause."""
        sentence = self._space.shortage()
        if not sentence:
            return False
        log.warning("draining paused: %s", sentence)
        self._in_hand.close()
        while sentence and not self._finished():
            self.report.doing("paused", DiskFull(sentence, hint="messages wait in the queue"))
            self._stand_by()
            sentence = self._space.shortage()
        if not sentence:
            log.info("draining resumes: the disk has room again")
        return True

    def _wait_while_paused(self) -> bool:
        """The same while somebody wants the intake paused."""
        if not self._hold.paused(self.state):
            return False
        self._work_off()
        self._in_hand.close()
        self.report.doing("held")
        while self._hold.paused(self.state) and not self._finished():
            self._stand_by()
        return True

    def _stand_by(self) -> None:
        self.lease.wait(LOOK_SECONDS)
        self._seal_due()
        self._keep_house()

    @contextmanager
    def _opened_slots(self) -> Iterator[None]:
        """Lock, claim and recover this worker's slots, and tell the state store what they hold."""
        self.state.open()
        # Before the slots are locked: a seal request made after that is this worker's to answer.
        self._seal_requested_at = self._seal_request()
        asked_at = running_seconds()
        with self._slots.opened(self.state, CLAIM_SECONDS):
            self._renewed_at = asked_at
            reached(CrashPoint.SLOTS_CLAIMED)
            self.state.add_sealed(sealed_partitions(self.layout))
            reached(CrashPoint.SEALED_FOUND)
            self._record(self._slots.counts())
            yield

    def _handle(self, batch: Sequence[Message]) -> None:
        """Commit a batch, or the first messages of it if they are enough for one commit."""
        done = 0
        for attempt in self._suspects.attempts(batch):
            committed = self._commit(attempt)
            done += committed
            if committed < len(attempt.messages) or self._decoder.exhausted:
                break
        self._in_hand.put_back(batch[done:])

    def _commit(self, attempt: Attempt) -> int:
        """Decode, store and settle the messages; only the first ones, if they are enough.

        Returns how many. If this ends the process, the next worker knows which were redelivered.
        """
        dead: list[tuple[Message, BadMessage]] = []
        stored = stored_bytes = 0
        with self._suspects.recorded(attempt):
            files = self._decode(attempt)
            if self._kept_headers is not None:
                files = self._kept_headers.added(files, attempt.messages)
            batch = attempt.messages[: len(files)]
            self._batch_bytes = sum(len(message.body) for message in batch)
            slot = self._slots.take_turn(len(batch))
            self._compare_old_claims()
            with self._redeliveries.turn(batch) as look:
                for message, file in zip(batch, files, strict=True):
                    if self._redeliveries.is_behind(message, look):
                        continue
                    if isinstance(file, BadMessage):
                        dead.append((message, file))
                        continue
                    if self._redeliveries.is_stored(message, file, look):
                        continue
                    try:
                        added = slot.add(file.name, file.content, file.headers)
                    except BadMessage as error:  # the file system cannot store its name
                        dead.append((message, error))
                        continue
                    if added:
                        stored += 1
                        stored_bytes += len(file.content)
                self._batch_bytes += stored_bytes
                letters = self._letters(dead, look)
                self._dead_letters.keep(letters)
                slot.commit(self._in_hand.source.positions_up_to(batch[-1]))
            bad = [message for message, _ in dead]
            self._in_hand.settle(CommittedBatch(batch[-1], len(batch), bad))
            reached(CrashPoint.SETTLED)
        if log.isEnabledFor(logging.DEBUG):
            self._trace(batch, files, slot)
        commit = Commit(
            slots=[slot.count],
            stored_messages=stored,
            stored_bytes=stored_bytes,
            duplicates=len(batch) - stored - len(letters),
            dead_letters=len(letters),
        )
        self._count(len(batch), commit, letters)
        self._record(commit)
        return len(batch)

    def _trace(
        self, batch: Sequence[Message], files: Sequence[File | BadMessage], slot: SlotOwner
    ) -> None:
        """Say what became of each message. The partition of a slot's directory ends with both
        numbers, `-s0-000017`."""
        count = slot.count
        for message, file in zip(batch, files, strict=True):
            if isinstance(file, BadMessage):
                log.debug("message %s became a dead letter: %s", message.message_id, file)
            else:
                log.debug(
                    "message %s is the file %s in s%d-%06d, or was stored before",
                    *(message.message_id, file.name, count.slot, count.number),
                )

    def _decode(self, attempt: Attempt) -> list[File | BadMessage]:
        if attempt.verdict is not None:
            return [attempt.verdict]
        if not self._decoder.may_take_long:
            return self._decoder.decode(attempt.messages, most_bytes=self.pipeline.commit_bytes)
        began = time.monotonic()
        with self._meanwhile.allowed():
            files = self._decoder.decode(
                attempt.messages, most_bytes=self.pipeline.commit_bytes, most_seconds=DECODE_SECONDS
            )
        self._in_hand.pace.decoded(len(files), time.monotonic() - began)
        return files

    def _stay_alive(self) -> None:
        """What cannot wait while a parser takes its time. Called by another thread."""
        self._in_hand.keep_alive()
        self._renew_claims()

    def _letters(
        self, dead: Sequence[tuple[Message, BadMessage]], look: Look
    ) -> Sequence[DeadLetter]:
        """The dead letters to write: a redelivered message may have its letter already."""
        describe = self._in_hand.source.describe
        letters = [self._dead_letters.letter(*pair, describe) for pair in dead]
        return self._redeliveries.without_written(letters, look)

    def _count(self, handled: int, commit: Commit, letters: Sequence[DeadLetter]) -> None:
        self.status.messages += handled
        self.status.stored_bytes += commit.stored_bytes
        self.status.duplicates += commit.duplicates
        self.status.dead_letters += commit.dead_letters
        if letters:
            self.status.last_dead_reason = letters[-1].reason

    def _record(self, commit: Commit) -> None:
        asked_at = running_seconds()
        self._slots.record(commit, self.state, CLAIM_SECONDS)
        reached(CrashPoint.PARTITION_PUSHED if commit.sealed else CrashPoint.RECORDED)
        if len(commit.slots) == len(self._slots.numbers):
            self._renewed_at = asked_at

    def _compare_old_claims(self) -> None:
        """Raise `SlotInUse` if claims that could not be renewed for too long are others' now: this
        process, or its machine, was stopped for a while, or a disk did not answer."""
        if running_seconds() - self._renewed_at > CLAIM_SECONDS:
            self._record(self._slots.counts())

    def _seal_due(self) -> None:
        for slot in self._slots:
            reason = slot.due()
            if reason is not None:
                self._seal(slot, reason)

    def _seal(self, slot: SlotOwner, reason: Reason) -> None:
        self._compare_old_claims()
        if self.pipeline.divides:  # reads all messages: seconds, on a slow disk
            with self._meanwhile.allowed():
                sealed = slot.seal_divided(reason)
        else:
            sealed = slot.seal_divided(reason)
        if sealed:
            self.status.sealed += len(sealed)
            self._space.backlog_grew()
            keys = [one.seal.partition for one in sealed]
            self._record(Commit(slots=[slot.count], sealed=keys))

    def _keep_house(self) -> None:
        """About once a second: the status file, seal requests, claims, the queue's heartbeats."""
        now = time.monotonic()
        if now - self._housekeeping_at < HOUSEKEEPING_SECONDS:
            return
        self._housekeeping_at = now
        self.status.reads = self._in_hand.source.reads()
        self.report.write()
        self._log_dead_letters(now)
        requested_at = self._seal_request()
        if requested_at not in (0.0, self._seal_requested_at):  # earlier: the clock was set back
            self._seal_requested_at = requested_at
            for slot in self._slots:
                self._seal(slot, "request")
        self._stay_alive()

    def _renew_claims(self) -> None:
        if self._slots and running_seconds() - self._renewed_at > CLAIM_SECONDS / 3:
            self._record(self._slots.counts())

    def _log_dead_letters(self, now: float) -> None:
        """At most every ten seconds: a flood of dead letters must not flood the log."""
        new = self.status.dead_letters - self._dead_logged
        often = now - self._dead_logged_at < DEAD_LETTERS_LOGGED_EVERY_SECONDS
        if new and (not often or self._finished()):
            self._dead_logged_at, self._dead_logged = now, self.status.dead_letters
            reason = self.status.last_dead_reason
            log.warning("%d messages became dead letters; reason of the last one: %s", new, reason)

    def _seal_request(self) -> float:
        """When a person or a job last asked for all slots to be sealed; 0 if nobody did."""
        request = self.layout.seal_request
        return request.stat().st_mtime if request.exists() else 0.0

    def _leave(self) -> None:
        reason = self.lease.over()
        log.info("worker %d is leaving: %s", self.status.worker, reason or self._used_up())
        self.report.doing("leaving")
        self._work_off()
        self._log_dead_letters(time.monotonic())
        if reason and self.pipeline.residue_file_upload:
            for slot in self._slots:
                self._seal(slot, "shutdown")
        if reason:  # otherwise the next worker has them, and nobody else may come first
            self._slots.give_back(self.state)
        reached(CrashPoint.SLOTS_RELEASED)

    def _work_off(self) -> None:
        """Commit what is in hand: if it were given back, it would count as delivered once more."""
        if not self._in_hand.consuming or self._decoder.exhausted:
            return
        self._in_hand.stop_taking()
        until = time.monotonic() + WORK_OFF_SECONDS
        while time.monotonic() < until and not self._decoder.exhausted:
            batch = self._in_hand.last_batch()
            if not batch:
                break
            self._handle(batch)

    def _used_up(self) -> str:
        if self._decoder.exhausted:
            return "a message took all the memory it may use"
        return "it has handled max_tasks_per_child messages"


def _alarm(seconds: float) -> None:
    """Have the kernel end this process (SIGALRM) after `seconds`; 0 cancels that.

    Nothing else helps against a function that holds the interpreter's lock.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
