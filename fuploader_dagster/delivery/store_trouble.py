"""Trouble with the object store: noted on disk, so that runs, ticks and commands agree about it.

    {root}/store-trouble.json       since when the store does not answer, the last error, its time
    {root}/store-refusal.json       since when it answers, but refuses us, the last error, its time
    {root}/locks/store-wait.lock    held by the one process that goes on trying meanwhile

What must always hold:

- At most one process of a pipeline waits for a store that does not answer. The others fail at once
  and keep their data: each run that waits takes one of the instance's places for runs.
- A note that nobody renews expires after `STALE_SECONDS`, so it never stops a pipeline whose store
  is well. The process that waits renews it at each attempt, recovery and watch at each look.
- When the store answers again, slots that failed meanwhile are due within a minute.
- A refusal holds nothing up: a person has to act, and each slot is tried again after its pauses, or
  within a minute of the first look that is not refused any more. It ends with an upload that gets
  through; if only looks met it, with a look.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from fuploader_dagster import errors
from fuploader_dagster.contracts.object_store import ObjectStore, Progress, Retry
from fuploader_dagster.delivery.failures import FailureNotes, all_failures
from fuploader_dagster.delivery.trouble_note import TroubleNote, end_note, keep_note, read_note
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.temporaries import is_held
from fuploader_dagster.settings.pipeline import Pipeline

log = logging.getLogger(__name__)

STALE_SECONDS = 300.0
LASTING_SECONDS = 5.0
"""A failure that goes away with the first retries is no trouble."""
LOOK_SECONDS = 10.0
"""How long a store may take to answer a look."""
FAILING_SECONDS = 60.0
"""While a run waits for the store, a look cannot end trouble that an attempt met so lately: it may
be that only uploads fail. More than the longest pause between two attempts."""
QUIET_SECONDS = 15.0
"""While uploads wait, the store is looked at after this long without a sign of it."""


ProgressOf = Callable[[str], Progress]
"""Gives the callback for a partition's upload."""


class StoreTrouble(TroubleNote, frozen=True, kw_only=True):
    """A store that does not answer."""

    what = "the object store has not answered since"


class StoreRefusal(TroubleNote, frozen=True, kw_only=True):
    """A store that answers, and refuses us."""

    what = "the object store answers, but has refused us since"
    by_upload: bool
    """An upload met it. A look may miss that: its rights may be others."""
    by_look: bool
    """The last look met it."""


def find_refusal(layout: Layout) -> StoreRefusal | None:
    """The refusal that is known; None if there is none."""
    return read_note(layout.store_refusal, StoreRefusal)


def note_refusal(layout: Layout, error: str, *, by_upload: bool) -> None:
    """Note that the store refuses us; a refusal that was noted before goes on."""
    now, before = time.time(), find_refusal(layout)
    refusal = StoreRefusal(
        since=before.since if before else now,
        seen_at=now,
        error=error,
        by_upload=by_upload or (before is not None and before.by_upload),
        by_look=not by_upload or (before is not None and before.by_look),
    )
    keep_note(layout.store_refusal, refusal)


def end_refusal(layout: Layout) -> None:
    """The store takes what is sent. May be repeated."""
    layout.store_refusal.unlink(missing_ok=True)


def known_trouble(layout: Layout) -> TroubleNote | None:
    """What is known to be wrong with the store: it does not answer, or it refuses us."""
    return find_trouble(layout) or find_refusal(layout)


def find_trouble(layout: Layout) -> StoreTrouble | None:
    """The trouble that is known; None if there is none, or if no process has seen it lately."""
    found = read_note(layout.store_trouble, StoreTrouble)
    fresh = found is not None and 0 <= time.time() - found.seen_at < STALE_SECONDS
    return found if fresh else None


def note_trouble(layout: Layout, error: str) -> None:
    """Note that the store does not answer; trouble that was noted before goes on."""
    now, before = time.time(), find_trouble(layout)
    since = before.since if before else now
    keep_note(layout.store_trouble, StoreTrouble(since=since, seen_at=now, error=error))


def end_trouble(layout: Layout) -> None:
    """The store answers. May be repeated."""
    end_note(layout.store_trouble, find_trouble(layout), "upload", layout)


def look(store: ObjectStore) -> str:
    """Whether a store answers within `LOOK_SECONDS`: empty, or what is wrong.

    Raises what it said if it answers, but refuses us.
    """
    answered: list[str] = []
    refused: list[errors.FuploaderError] = []

    def ask() -> None:
        try:
            store.check()
            answered.append("")
        except errors.TemporaryError as error:
            answered.append(str(error))
        except errors.FuploaderError as error:
            refused.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="look at the store")
    thread.start()
    thread.join(LOOK_SECONDS)
    if refused:
        raise refused[0]
    return answered[0] if answered else f"no answer within {LOOK_SECONDS:g} s"


def look_again(layout: Layout, store: ObjectStore) -> StoreTrouble | None:
    """Look at the store, and note what it says. None if it answers, be it that it refuses us.

    While a run waits for the store, its attempts count for more than this look: trouble ends here
    only after `FAILING_SECONDS` without one that failed (the run may be sending an archive).
    """
    try:
        if error := look(store):
            note_trouble(layout, error)
            return find_trouble(layout)
    except errors.FuploaderError as refused:
        note_refusal(layout, str(refused), by_upload=False)
    else:
        _end_refusal_of_looks(layout)
    trouble = find_trouble(layout)
    just_met = trouble is not None and time.time() - trouble.seen_at < FAILING_SECONDS
    if just_met and is_held(layout.store_wait_lock):
        return trouble
    end_trouble(layout)
    return None


def _end_refusal_of_looks(layout: Layout) -> None:
    """A look was not refused. If the last one was, somebody has mended it, and slots that failed
    meanwhile are due. What an upload met goes on until one gets through, or none waits."""
    refusal = find_refusal(layout)
    if refusal is None:
        return
    if refusal.by_look:
        FailureNotes(layout.archives).forgive_since("upload", refusal.since)
    if not (refusal.by_upload and any(one.stage == "upload" for one in all_failures(layout))):
        end_refusal(layout)
    elif refusal.by_look:
        keep_note(layout.store_refusal, msgspec.structs.replace(refusal, by_look=False))


def still_in_trouble(pipeline: Pipeline) -> StoreTrouble | None:
    """The object store does not answer; None if it does. Looks at it only if something was wrong
    with it."""
    if known_trouble(pipeline.layout) is None:
        return None
    return look_again(pipeline.layout, pipeline.store.open())


class Patience:
    """Lets one process wait for the store. Use as a context manager around uploads.

    `tell` gets a sentence for each attempt that failed; it is called from any thread.
    """

    def __init__(self, layout: Layout, store: ObjectStore, tell: Callable[[str], None]) -> None:
        self._layout = layout
        self._store = store
        self._tell = tell
        self._lock = threading.Lock()
        self._waiting = FileLock(layout.store_wait_lock)
        self._waits = False
        self._last_sign = time.monotonic()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look_when_quiet, daemon=True, name="store")

    def __enter__(self) -> Patience:
        self._store.listen(self.failed)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._waiting.release()

    def begin(self) -> None:
        """Before an upload. Raises `StoreAwaited` if another process waits for the store."""
        trouble = find_trouble(self._layout)
        if trouble is not None:
            self._wait_or_raise(str(trouble))

    def failed(self, retry: Retry) -> None:
        """An attempt failed and would be repeated. Raises `StoreAwaited` to prevent that."""
        self._tell(str(retry))
        if retry.seconds < LASTING_SECONDS:
            return
        self._wait_or_raise(str(retry.error))
        self._note(str(retry.error))

    @contextmanager
    def upload(self, partition: str, progress: ProgressOf | None) -> Iterator[Progress]:
        """Around the upload of a partition's archive, which the store has confirmed at the end.

        Gives the callback for the upload: each call counts as a sign of the store. Raises as
        `begin` does. That the store refuses it is noted.
        """
        self.begin()
        report = progress(partition) if progress else None

        def progressed(sent: int, total: int) -> None:
            self._last_sign = time.monotonic()
            if report is not None:
                report(sent, total)

        try:
            yield progressed
        except errors.StoreRefused as refused:
            self._note(str(refused), refused=True)
            raise
        self._last_sign = time.monotonic()
        if self._layout.store_refusal.exists():
            end_refusal(self._layout)
        if self._layout.store_trouble.exists():
            end_trouble(self._layout)

    def _wait_or_raise(self, error: str) -> None:
        with self._lock:
            if self._waits:
                return
            try:
                self._waiting.acquire()
            except errors.SlotInUse as somebody:
                raise errors.StoreAwaited(
                    f"{error}; {somebody.message}, which waits for the store",
                    hint="nothing to do: the slot is asked for again as soon as the store answers",
                ) from somebody
            self._waits = True

    def _look_when_quiet(self) -> None:
        while not self._over.wait(QUIET_SECONDS):
            if time.monotonic() - self._last_sign < QUIET_SECONDS:
                continue
            try:
                error = look(self._store)
            except errors.FuploaderError:  # it answers, and the upload says what it refuses
                continue
            if error and not self._over.is_set():
                self._tell(f"the object store does not answer: {error}")
                self._note(error)

    def _note(self, error: str, *, refused: bool = False) -> None:
        try:
            if refused:
                note_refusal(self._layout, error, by_upload=True)
            else:
                note_trouble(self._layout, error)
        except (errors.FuploaderError, OSError) as trouble:
            log.warning("could not note the trouble with the object store: %s", trouble)
