"""Shipping: packing and uploading many partitions, each on its own.

What must always hold: every partition that was asked for gives one outcome; one that fails is
noted, keeps all its data, and takes no other with it. Partitions that the store has confirmed
already are done, and say so.

Packing anew (`Repacking`) is for those only who ask for it: then partitions that the store has are
fetched back, and uploaded once more as the settings say today.

Without Dagster: `ship(settings, store)` packs and uploads everything that lies sealed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fuploader_dagster.config import Pipeline
from fuploader_dagster.errors import DamagedData, FuploaderError, PermanentError
from fuploader_dagster.failures import Stage, note_failure
from fuploader_dagster.fileio import naming_disk_trouble
from fuploader_dagster.layout import PartitionKey
from fuploader_dagster.packing import Packed, find_packed, pack
from fuploader_dagster.receipts import Receipt
from fuploader_dagster.repacking import Repacking, repack, upload_again
from fuploader_dagster.sealing import SealedSlot, find_sealed, sealed_partitions
from fuploader_dagster.storage import ObjectStore, Progress
from fuploader_dagster.upload import PartitionLock, upload

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """A partition that got through a stage."""

    partition: str
    seconds: float
    packed: Packed | None
    """The finished archive; None if it had been stored before."""
    receipt: Receipt | None
    """What the store confirmed; None as long as it is only packed."""


@dataclass(frozen=True)
class Failed:
    """A partition that did not. Its data is kept and the failure is noted."""

    partition: str
    seconds: float
    error: str
    permanent: bool
    """Trying again without a change cannot help."""


Outcome = Done | Failed
_Result = tuple[Packed | None, Receipt | None]
_Step = Callable[[SealedSlot], _Result]
_Again = Callable[[Receipt], _Result]


def pack_partitions(
    partitions: Sequence[str], settings: Pipeline, repacking: Repacking | None = None
) -> Iterator[Outcome]:
    """Pack one after the other (the compression of each uses `pack_threads`)."""
    again: _Again | None = None
    if repacking is not None:
        again = lambda before: (repack(before, repacking, settings), None)  # noqa: E731
    for partition in partitions:
        yield _attempt(
            partition, settings, "pack", lambda slot: (pack(slot, settings), None), again
        )


def upload_partitions(
    partitions: Sequence[str],
    settings: Pipeline,
    store: ObjectStore,
    progress: Callable[[str], Progress] | None = None,
    repacking: Repacking | None = None,
) -> Iterator[Outcome]:
    """Upload side by side; a partition that was not packed yet is packed first.

    `progress` gives the callback for a partition. Outcomes come in the order of `partitions`.
    """

    def ship_one(partition: str) -> Outcome:
        def step(slot: SealedSlot) -> tuple[Packed | None, Receipt | None]:
            packed = pack(slot, settings)
            report = progress(partition) if progress else None
            return packed, upload(slot, packed, store, settings, progress=report)

        def again(before: Receipt) -> _Result:
            assert repacking is not None  # noqa: S101 - else it is not called
            packed = find_packed(settings.layout, partition) or repack(before, repacking, settings)
            report = progress(partition) if progress else None
            return packed, upload_again(before, packed, store, settings, progress=report)

        return _attempt(partition, settings, "upload", step, again if repacking else None)

    with ThreadPoolExecutor(settings.upload_threads, "upload") as threads:
        yield from threads.map(ship_one, partitions)


def ship(settings: Pipeline, store: ObjectStore) -> Iterator[Outcome]:
    """Pack and upload everything that lies sealed on this disk now."""
    yield from upload_partitions(sealed_partitions(settings.layout), settings, store)


def _attempt(
    partition: str, settings: Pipeline, stage: Stage, step: _Step, again: _Again | None = None
) -> Outcome:
    """`step` for what lies sealed here; `again`, if it is asked for, for what is stored."""
    started = time.monotonic()
    try:
        if PartitionKey.parse(partition) is None:
            raise PermanentError(
                f"{partition!r} is no partition key of ours",
                hint="somebody added it to the partition set by hand; delete it there",
            )
        with (
            naming_disk_trouble(settings.layout.root),
            PartitionLock(settings.layout, partition) as stored_before,
        ):
            if stored_before is None:
                packed, receipt = step(_sealed(partition, settings))
            elif again is not None:
                packed, receipt = again(stored_before)
            else:
                packed, receipt = None, stored_before
    except (FuploaderError, OSError) as error:
        text = str(error) or type(error).__name__
        _note(partition, settings, stage, text)
        permanent = isinstance(error, (PermanentError, DamagedData))
        return Failed(partition, time.monotonic() - started, text, permanent)
    return Done(partition, time.monotonic() - started, packed, receipt)


def _note(partition: str, settings: Pipeline, stage: Stage, error: str) -> None:
    """Count the failure of a slot that is here; losing the count loses nothing else."""
    try:
        key = PartitionKey.parse(partition)
        if key is not None and settings.layout.sealed(key.slot, key.number).is_dir():
            note_failure(settings.layout, partition, stage=stage, error=error, now=time.time())
    except (FuploaderError, OSError) as trouble:
        log.warning("the failure of %s could not be noted: %s", partition, trouble)


def _sealed(partition: str, settings: Pipeline) -> SealedSlot:
    slot = find_sealed(settings.layout, partition)
    if slot is None:
        raise PermanentError(
            f"there is no data of partition {partition} below {settings.layout.root}",
            hint="it belongs to another node or storage root; nothing of it was ever stored "
            "from here",
        )
    return slot
