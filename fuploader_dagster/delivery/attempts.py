"""What becomes of a partition in a step: it is done, or it failed and keeps its data.

What must always hold: whatever goes wrong with a partition, by whatever error, becomes its outcome
and takes no other partition with it. A damaged slot fails once, and the error says what became of
it (`mend`): what it still proves is another partition by then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fuploader_dagster import errors
from fuploader_dagster.delivery.failures import Stage, note_failure
from fuploader_dagster.delivery.mend import finish_mending, is_replaced, mend
from fuploader_dagster.delivery.pack import Packed
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.secret import without_logins
from fuploader_dagster.slots.processed import ProcessedSeal
from fuploader_dagster.slots.receipts import Receipt, RowsReceipt
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """A partition that got through."""

    partition: str
    packed: Packed | None = None
    """The finished archive; None if it was stored before."""
    receipt: Receipt | None = None
    """What the store confirmed; None while it is only packed."""
    note: str = ""
    """Why there is neither archive nor receipt, if there will be none."""
    seconds: float = 0.0
    processed: ProcessedSeal | None = None
    """What came out of its items, if this step processed them."""
    rows: RowsReceipt | None = None
    """What a sink confirmed, if this step stores rows."""


@dataclass(frozen=True)
class Failed:
    """A partition that did not get through. Its data is kept."""

    partition: str
    error: str
    permanent: bool
    """Trying again in this run cannot help."""
    attempted: bool = True
    """False: nothing was tried, because another process waits for the store already, or because
    the processor or the sink is unavailable."""
    unavailable: bool = False
    """The processor works for no item, or the sink takes nothing."""
    seconds: float = 0.0


Outcome = Done | Failed


def attempt(partition: str, steps: Callable[[PartitionKey], Done]) -> Outcome:
    """Take one partition through its steps; whatever goes wrong becomes its outcome."""
    started = time.monotonic()
    try:
        outcome: Outcome = steps(partition_key(partition))
    except Exception as error:  # noqa: BLE001  it is the outcome
        outcome = failed(partition, error)
    return replace(outcome, seconds=time.monotonic() - started)


def partition_key(partition: str) -> PartitionKey:
    """What a partition key says. Raises `PermanentError` if it is none of ours."""
    key = PartitionKey.parse(partition)
    if key is None:
        raise errors.PermanentError(
            f"{partition!r} is no partition key of ours",
            hint="somebody added it to the partition set by hand; delete it there",
        )
    return key


def failed(partition: str, error: Exception) -> Failed:
    """The outcome of a partition that met this error."""
    if isinstance(error, (errors.FuploaderError, OSError)):
        text = str(error) or type(error).__name__
        lasting = (errors.PermanentError, errors.DamagedData, errors.StoreAwaited)
        made_again = isinstance(error, errors.DamagedResults)
        takes_nothing = (errors.ProcessorUnavailable, errors.SinkUnavailable, errors.SinkRefused)
        return Failed(
            partition,
            text,
            isinstance(error, lasting) and not made_again,
            attempted=not isinstance(error, errors.StoreAwaited),
            unavailable=isinstance(error, takes_nothing),
        )
    # a bug: the outcomes of the others must not go with it
    log.error("unexpected error for partition %s", partition, exc_info=error)
    said = without_logins(f"{type(error).__name__}: {error}")
    text = f"unexpected error, its traceback is in the log: {said}"
    return Failed(partition, text, permanent=False)


@contextmanager
def mending(key: PartitionKey, pipeline: Pipeline) -> Iterator[SealedSlot]:
    """The sealed slot of a partition, for the block. If it is found damaged there, it is mended,
    and the error says so. The caller holds the partition's lock."""
    layout = pipeline.layout
    try:
        if is_replaced(layout, key.slot, key.number):
            raise errors.DamagedSlot(f"{key} was found damaged before")
        slot = _sealed(str(key), pipeline)
        finish_mending(slot, layout)
        yield slot
    except errors.DamagedSlot as error:
        mended = mend(key.slot, key.number, error, pipeline)
        raise errors.DamagedSlot(mended.sentence(layout)) from error


def note_failed(outcome: Failed, pipeline: Pipeline, stage: Stage) -> None:
    """Count the failure of a slot that is on this disk; losing the count loses nothing else."""
    try:
        key = PartitionKey.parse(outcome.partition)
        if key is not None and pipeline.layout.sealed(key.slot, key.number).is_dir():
            note_failure(
                pipeline.layout,
                outcome.partition,
                stage=stage,
                error=outcome.error,
                now=time.time(),
            )
    except (errors.FuploaderError, OSError) as trouble:
        log.warning("could not note the failure of %s: %s", outcome.partition, trouble)


def _sealed(partition: str, pipeline: Pipeline) -> SealedSlot:
    slot = find_sealed(pipeline.layout, partition)
    if slot is None:
        raise errors.PermanentError(
            f"there is no data of partition {partition} below {pipeline.layout.root}",
            hint="it belongs to another node or another storage_root: nothing of it was ever "
            "stored from here",
        )
    return slot
