"""What a run reports of its partitions: log lines, materialisations and the step's failure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ParamSpec

import dagster as dg

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery.attempts import Done, Failed, Outcome
from fuploader_dagster.delivery.pack import Packed
from fuploader_dagster.delivery.process_step import ItemsDone
from fuploader_dagster.delivery.store_trouble import ProgressOf
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.processed import ProcessedSeal
from fuploader_dagster.slots.receipts import Receipt, RowsReceipt

PROGRESS_SECONDS = 5.0
MAX_LISTED_FAILURES = 10
_P = ParamSpec("_P")


def retry_policy(pipeline: Pipeline) -> dg.RetryPolicy:
    """How Dagster tries a step of the pipeline again."""
    return dg.RetryPolicy(
        max_retries=pipeline.max_retries,
        delay=pipeline.retry_delay_seconds,
        backoff=dg.Backoff.EXPONENTIAL,
        jitter=dg.Jitter.PLUS_MINUS,
    )


@contextmanager
def ended_by_interrupts(unfinished: str) -> Iterator[None]:
    """`Terminate` and Ctrl-C end the step; Dagster's retry policy would start it once more.

    `unfinished` says what becomes of the partitions that the step did not finish.
    """
    try:
        yield
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as interrupt:
        raise dg.Failure(f"interrupted; {unfinished}", allow_retries=False) from interrupt


def sorted_outcomes(
    log: logging.Logger, outcomes: Iterable[Outcome]
) -> tuple[list[Done], list[Failed]]:
    """What got through and what failed. Failures are logged as they happen."""
    done: list[Done] = []
    failed: list[Failed] = []
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            failed.append(outcome)
            log.error(f"{outcome.partition} failed, its data is kept: {outcome.error}")
        else:
            done.append(outcome)
    return done, failed


def failure(failed: Sequence[Failed], *, final: bool) -> dg.Failure:
    """The failure of a step; `final`: Dagster does not try the step again."""
    listed = "; ".join(f"{one.partition}: {one.error}" for one in failed[:MAX_LISTED_FAILURES])
    more = len(failed) - MAX_LISTED_FAILURES
    tail = f"; and {more} more" if more > 0 else ""
    return dg.Failure(
        f"{counted(len(failed), 'partition')} failed, with all data kept: {listed}{tail}",
        metadata={"failed": len(failed)},
        allow_retries=not final,
    )


def materialized(
    assets: Sequence[dg.AssetKey], done: Sequence[Done], names: Names
) -> Iterator[dg.AssetMaterialization]:
    """What got through, reported for each of these assets."""
    for one in done:
        for asset in assets:
            metadata = metadata_of(asset, one, names)
            yield dg.AssetMaterialization(asset, partition=one.partition, metadata=metadata)


def metadata_of(asset: dg.AssetKey, done: Done, names: Names) -> dict[str, Any]:
    """What the UI shows of a partition of the asset."""
    if done.rows is not None and names.is_sink(asset):
        metadata = rows_metadata(done.rows)
        metadata |= {"note": done.note} if done.note else {}
    elif done.processed is not None and asset == names.processed_slot:
        metadata = processing_metadata(done.processed)
    elif done.receipt is not None:
        metadata = receipt_metadata(done.receipt)
    elif done.packed is not None:
        metadata = _archive_metadata(done.packed)
    else:
        return {"note": done.note} if done.note else {}
    metadata["seconds"] = round(done.seconds, 3)
    if done.receipt is not None and done.packed is None:
        metadata["note"] = (
            "stored before; nothing was left to do "
            f"(the job {names.repack_job} packs stored archives again)"
        )
    return metadata


def receipt_metadata(receipt: Receipt) -> dict[str, Any]:
    """What the UI shows of a stored archive."""
    return {
        **_archive_metadata(receipt),
        "address": _address(receipt.address),
        "dagster/uri": receipt.address,
        "object_key": receipt.key,
        "stored_at": moment(receipt.stored_at),
    }


def processing_metadata(processed: ProcessedSeal) -> dict[str, Any]:
    """What the UI shows of a processed slot."""
    return {
        "items": processed.inputs,
        "dagster/partition_row_count": processed.results,
        "results": processed.results,
        "result_bytes": processed.payload_bytes,
        "failed": processed.failed,
        **_lacking(processed),
        "retries": processed.retries,
        "seconds_p50": processed.seconds_p50,
        "seconds_p95": processed.seconds_p95,
        "processor": processed.processing.processor,
    }


def _lacking(processed: ProcessedSeal) -> dict[str, Any]:
    """What is missing of items that have other results."""
    if not processed.partial:
        return {}
    return {"partial": processed.partial, "failed_parts": processed.failures}


def rows_metadata(receipt: RowsReceipt) -> dict[str, Any]:
    """What the UI shows of rows in a sink."""
    return {
        "rows": receipt.rows,
        "dagster/partition_row_count": receipt.rows,
        "rejected_items": receipt.rejected,
        "address": receipt.address,
        "stored_at": moment(receipt.stored_at),
        **({"redo": receipt.redo} if receipt.redo else {}),
    }


def _archive_metadata(archive: Packed | Receipt) -> dict[str, Any]:
    return {
        "messages": archive.messages,
        "dagster/partition_row_count": archive.members,
        **({"results": archive.results} if archive.results else {}),
        "payload_bytes": archive.payload_bytes,
        "archive_bytes": archive.size_bytes,
        "ratio": round(archive.payload_bytes / max(1, archive.size_bytes), 2),
        "sha256": archive.sha256,
    }


def moment(text: str) -> Any:
    """A time of ours, UTC in ISO 8601, as Dagster shows it; what is none, as it is."""
    try:
        return dg.MetadataValue.timestamp(datetime.fromisoformat(text.replace("Z", "+00:00")))
    except ValueError:  # a receipt of a later version, or somebody changed it
        return text


def _address(address: str) -> dg.MetadataValue[Any]:
    if address.startswith("file://"):
        return dg.MetadataValue.path(address.removeprefix("file://"))
    return dg.MetadataValue.url(address)


def log_progress(log: logging.Logger) -> ProgressOf:
    """Progress of large uploads, a line every few seconds each."""
    return lambda partition: at_intervals(
        lambda sent, total: log.info(f"{partition}: {sent:,} of {total:,} bytes are stored")
    )


def log_items(log: logging.Logger) -> ItemsDone:
    """Progress of processing, a line every few seconds."""
    return at_intervals(
        lambda partition, done, items, failed: log.info(
            f"{partition}: {done:,} of {counted(items, 'item')} processed, {failed:,} of "
            "them failed"
        )
    )


def at_intervals(say: Callable[_P, None]) -> Callable[_P, None]:
    """Pass a call on at most every `PROGRESS_SECONDS`; the others do nothing."""
    last = time.monotonic()

    def said(*args: _P.args, **kwargs: _P.kwargs) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            say(*args, **kwargs)

    return said
