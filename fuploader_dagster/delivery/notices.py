"""Telling: notices of tasks are sent behind the work, by whichever process is there.

What must always hold:

- Whoever works on a task only says that something is durable (`began`, `committed`, `over`), which
  takes no longer than a write to this disk. A thread of the process sends; a notifier that is dead
  holds up no task and no other notifier.
- What could not be sent is sent later, by the next process that says or asks anything (`wake`: the
  recovery schedule, the loop of `fuploader drain --ship`). While a notifier does not answer, one
  attempt is made after each of its growing pauses.
- A task's notices are sent in their order, by one process at a time.
- `give_up_seconds` after its end a task is given up if it still cannot be told: with an error in
  the log, and a count that `fuploader status` shows.

    slot_in_work, ship        began, committed     what is committed, in memory: made again after a
                                                   crash by whoever goes on with the slot
    upload                    over                 a file that has all that is left to tell
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from fuploader_dagster import errors
from fuploader_dagster.contracts.notifier import Notice, NotifierSettings
from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.delivery.notice_files import NoticeFiles, all_notice_files
from fuploader_dagster.delivery.task_notices import (
    Task,
    Told,
    Working,
    task_at_its_end,
    task_at_work,
    untold,
)
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import waited_for
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt
from fuploader_dagster.slots.sealing import SealedSlot

log = logging.getLogger(__name__)

SETTLE_SECONDS = 3.0
"""How long a process that is about to end may go on sending. The rest is sent by another one."""
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0


def began(pipeline: Pipeline, slot: SealedSlot, layout: Layout | None = None) -> None:
    """Work on a sealed slot begins. `layout`: where; a redo, which is elsewhere, is not told."""
    if _is_told(pipeline, slot, layout):
        for courier in _couriers(pipeline):
            courier.tell(Working(slot))


def committed(
    pipeline: Pipeline,
    slot: SealedSlot,
    layout: Layout | None = None,
    *,
    processing: str = "",
    results: int = 0,
) -> None:
    """So many results of a slot are durable."""
    if _is_told(pipeline, slot, layout):
        for courier in _couriers(pipeline):
            courier.tell(Working(slot, processing, results))


def over(pipeline: Pipeline, slot: SealedSlot, receipt: Receipt) -> None:
    """A slot's archive is stored. Called before its local data goes; may be repeated."""
    if not _is_told(pipeline, slot):
        return
    try:
        task = task_at_its_end(pipeline, slot, receipt)
    except (errors.DamagedData, FileNotFoundError) as error:
        log.error("%s is stored, but nobody can be told: %s", receipt.partition, error)
        return
    for courier in _couriers(pipeline):
        courier.files.keep_end(task)
        courier.tell()


def wake(pipeline: Pipeline) -> None:
    """Send what is left to be sent, if it is time to. Returns at once."""
    for courier in _couriers(pipeline):
        courier.tell()


def settle(pipeline: Pipeline, seconds: float = SETTLE_SECONDS) -> None:
    """Wait until nothing more can be sent now, but no longer than this."""
    until = time.monotonic() + seconds
    for courier in _couriers(pipeline):
        courier.join(max(0.0, until - time.monotonic()))


def _is_told(pipeline: Pipeline, slot: SealedSlot, layout: Layout | None = None) -> bool:
    """Slots of several messages were sealed before the pipeline had tasks."""
    here = layout is None or layout == pipeline.layout
    return bool(pipeline.notify) and slot.seal.messages == 1 and here


class Courier:
    """Sends the notices of one notifier, in a thread that ends when there is nothing to send."""

    def __init__(self, pipeline: Pipeline, settings: NotifierSettings, files: NoticeFiles) -> None:
        self.files = files
        self._pipeline, self._settings = pipeline, settings
        self._notifier = settings.notifier()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked = False
        self._working: dict[str, Working] = {}
        self._told: dict[str, Working] = {}
        """Of which everything is told."""
        self._swept_at = 0.0

    def tell(self, working: Working | None = None) -> None:
        with self._lock:
            self._asked = True
            if working is not None:
                known = self._working.setdefault(working.slot.seal.partition, working)
                if working.processing and known is not working:
                    self._working[working.slot.seal.partition] = working
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
                self._thread.start()

    def join(self, seconds: float) -> None:
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._thread = None
                    self._notifier.close()
                    return
                self._asked = False
                working = dict(self._working)
            try:
                self._send_all(working)
            except Exception:  # a thread's edge: another thread begins again
                log.exception("%s: notices could not be sent", self._settings.describe())

    def _send_all(self, working: dict[str, Working]) -> None:
        now, trouble = time.time(), self.files.trouble
        if trouble is not None and 0 <= now - trouble.seen_at < _pause(trouble.attempts):
            return
        new = [key for key, one in working.items() if self._told.get(key) is not one]
        for partition in dict.fromkeys([*self.files.ends(), *new]):
            try:
                with waited_for(self.files.lock()):
                    sent = self._send(partition, working.get(partition), now)
            except errors.NotifierUnavailable as error:
                self._nobody_answers(error, now)
                return
            if sent and trouble is not None:
                self.files.end_trouble()
                trouble = None
        if now - self._swept_at > LONGEST_PAUSE_SECONDS:
            self._swept_at = now
            self.files.sweep()

    def _nobody_answers(self, error: errors.NotifierUnavailable, now: float) -> None:
        if self.files.trouble is None:
            log.warning("notices wait: %s", error)
        self.files.note_trouble(str(error))
        old = [key for key in self.files.ends() if self._is_old(self.files.end(key), now)]
        for partition in old:
            with waited_for(self.files.lock()):
                self._give_up(partition, self.files.told(partition), str(error), now)

    def _send(self, partition: str, working: Working | None, now: float) -> bool:
        """Send what is untold of a task; whether it was taken. The caller has the lock."""
        told, task = self.files.told(partition), self._task(partition, working)
        if task is None or told.ended:
            self._forget(partition, ended=told.ended)
            return False
        if told.attempts and 0 <= now - told.tried_at < _pause(told.attempts):
            return False
        try:
            told = self._send_untold(task, told)
        except (errors.BadNotice, errors.NotifierRefused) as error:
            self._refused(error, task, now)
            return False
        if told.ended:
            self._forget(partition, ended=True)
        elif working is not None:
            self._told[partition] = working
        return True

    def _refused(self, error: errors.FuploaderError, task: Task, now: float) -> None:
        partition, told = task.partition, self.files.told(task.partition)
        if isinstance(error, errors.BadNotice) or self._is_old(task, now):
            self._give_up(partition, told, str(error), now)
            return
        log.warning("a notice of %s was refused and is tried again: %s", partition, error)
        again = msgspec.structs.replace(told, attempts=told.attempts + 1, tried_at=now)
        self.files.note_told(partition, again)

    def _task(self, partition: str, working: Working | None) -> Task | None:
        task = self.files.end(partition)
        if task is None and working is not None:
            with suppress(FileNotFoundError, errors.DamagedData):  # its end comes next
                return task_at_work(self._pipeline, working)
        return task or self.files.end(partition)

    def _send_untold(self, task: Task, told: Told) -> Told:
        wanted = self._settings.on
        every = untold(self._own(task), told, self._pipeline)
        sent = told
        while some := list(islice(every, self._notifier.most_at_once)):
            notices = [self._addressed(one, task) for one, _ in some if one.event in wanted]
            if notices:
                self._notifier.send(notices)
                reached(CrashPoint.NOTICE_SENT)
            sent = msgspec.structs.replace(some[-1][1], attempts=0)
            self.files.note_told(task.partition, sent)
        return sent

    def _own(self, task: Task) -> Task:
        """With the fields that this notifier asks for, and no others."""
        paths = self._settings.fields_used()
        fields = {path: value for path, value in task.fields.items() if path in paths}
        return msgspec.structs.replace(task, fields=fields)

    def _addressed(self, notice: Notice, task: Task) -> Notice:
        """With the address to download the archive from, where the notice is about its end."""
        if notice.event != "end" or task.archive is None:
            return notice
        address = self._presigned(task.archive.key)
        found: dict[str, Any] = {"url": address}
        if address is not None:
            found["url_seconds"] = self._settings.presigned_seconds
        return replace(notice, content={**notice.content, **found})

    @cached_property
    def _store(self) -> ObjectStore:
        return self._pipeline.store.open()

    def _presigned(self, key: str) -> str | None:
        if not self._settings.presigned_seconds:
            return None
        try:
            return self._store.presigned(key, self._settings.presigned_seconds)
        except errors.FuploaderError as error:
            log.warning("there is no address to download %s from: %s", key, error)
            return None

    def _is_old(self, task: Task | None, now: float) -> bool:
        if task is None or task.archive is None:
            return False
        ended_at = datetime.fromisoformat(task.archive.stored_at).timestamp()
        return now - ended_at > self._settings.give_up_seconds

    def _give_up(self, partition: str, told: Told, reason: str, now: float) -> None:
        log.error(
            "nobody is told any more of the task in %s, whose data is safe: %s", partition, reason
        )
        self.files.note_told(partition, msgspec.structs.replace(told, ended=True))
        self.files.note_given_up(1, reason, now)
        self._forget(partition, ended=True)

    def _forget(self, partition: str, *, ended: bool) -> None:
        if ended:
            self.files.close(partition)
        self._told.pop(partition, None)
        with self._lock:
            self._working.pop(partition, None)


def _pause(attempts: int) -> float:
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(max(attempts - 1, 0), 20), LONGEST_PAUSE_SECONDS)


_made: dict[Path, tuple[Pipeline, Sequence[Courier]]] = {}
_made_lock = threading.Lock()


def _couriers(pipeline: Pipeline) -> Sequence[Courier]:
    """Those of a pipeline in this process, the same ones as long as its settings are."""
    if not pipeline.notify:
        return ()
    root = pipeline.layout.root
    with _made_lock:
        known = _made.get(root)
        if known is None or known[0].notify != pipeline.notify:
            new = [Courier(pipeline, *one) for one in all_notice_files(pipeline)]
            known = _made[root] = (pipeline, new)
        return known[1]


def _begin_anew() -> None:
    """In a forked process none of the parent's threads is there."""
    global _made_lock  # noqa: PLW0603
    _made_lock = threading.Lock()
    _made.clear()


os.register_at_fork(after_in_child=_begin_anew)
