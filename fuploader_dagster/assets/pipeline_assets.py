"""The assets of a pipeline: queue -> sealed_slot -> packed_archive -> uploaded_archive.

The queue and the sealed slots are made outside of Dagster (by the drain workers); the other two
take the partitions of a run, call one function of the engine, and say per partition what came out.

A partition that fails takes no other with it. While attempts are left the step raises and reports
nothing: the next attempt finds what is done and skips it. After the last attempt it reports the
good partitions and fails for the others, which stay on disk for the recovery schedule. Dagster
skips the upload behind a packing step that failed, so that step uploads its good partitions itself.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.object_store import Progress
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.pack import Packed
from fuploader_dagster.delivery.repack import Repacking
from fuploader_dagster.delivery.ship import (
    Done,
    Failed,
    Outcome,
    pack_partitions,
    upload_partitions,
)
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt

_Step = Callable[[dg.AssetExecutionContext], Iterator[Any]]

PROGRESS_SECONDS = 5.0
MAX_LISTED_FAILURES = 10
REPACK_TAG = "fuploader/repack"
"""`true` on a run or backfill: stored archives are fetched back, packed anew and uploaded again."""


def build_archive_assets(pipeline: Pipeline) -> Sequence[dg.AssetSpec | dg.AssetsDefinition]:
    """The four assets of a pipeline, in one group that is named for it."""
    with warnings.catch_warnings():  # its one warning, that it is in beta, is known
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _build_assets(pipeline)


def _build_assets(pipeline: Pipeline) -> Sequence[dg.AssetSpec | dg.AssetsDefinition]:
    names = Names.of(pipeline)
    partitions = names.partitions()
    backfill_policy = dg.BackfillPolicy.multi_run(pipeline.partitions_per_run)
    retry_policy = dg.RetryPolicy(
        max_retries=pipeline.max_retries,
        delay=pipeline.retry_delay_seconds,
        backoff=dg.Backoff.EXPONENTIAL,
        jitter=dg.Jitter.PLUS_MINUS,
    )
    automation_condition = (
        dg.AutomationCondition.on_missing() if pipeline.runs_by == "automation" else None
    )
    queue = dg.AssetSpec(
        names.queue,
        group_name=names.scope,
        kinds={type(pipeline.source).__name__.lower()},
        description=f"Messages that wait: {pipeline.source.describe()}",
    )
    sealed_slot = dg.AssetSpec(
        names.sealed_slot,
        deps=[names.queue],
        partitions_def=partitions,
        group_name=names.scope,
        kinds={"file"},
        description="Full slots on the local disk, reported by the drain sensor.",
    )

    @dg.asset(
        key=names.packed_archive,
        deps=[sealed_slot],
        kinds={"zstandard"},
        description="Each sealed slot as one archive, read back after writing.",
        required_resource_keys={names.store},
        partitions_def=partitions,
        group_name=names.scope,
        backfill_policy=backfill_policy,
        retry_policy=retry_policy,
        automation_condition=automation_condition,
        output_required=False,
    )
    @_ended_by_interrupts
    def packed_archive(context: dg.AssetExecutionContext) -> Iterator[Any]:
        outcomes = pack_partitions(
            context.partition_keys, pipeline, _repacking(context.run.tags, pipeline)
        )
        done, failed = _sorted(context, outcomes)
        selection = context.run.asset_selection  # none: all that the job has
        if _is_final(context, pipeline, failed) and (
            not selection or names.uploaded_archive in selection
        ):
            try:
                uploaded, _ = _sorted(context, upload(context, [one.partition for one in done]))
            except FuploaderError as error:
                context.log.error(f"{len(done)} archives wait for their upload: {error}")
            else:
                for one in uploaded:
                    yield _materialized(names.uploaded_archive, one)
        yield from _report(context, pipeline, names.packed_archive, done, failed)

    @dg.asset(
        key=names.uploaded_archive,
        deps=[packed_archive],
        kinds={type(pipeline.store).__name__.removesuffix("Settings").lower()},
        description=f"Archives that the store has confirmed: {pipeline.store.describe()}",
        required_resource_keys={names.store},
        partitions_def=partitions,
        group_name=names.scope,
        backfill_policy=backfill_policy,
        retry_policy=retry_policy,
        automation_condition=automation_condition,
        output_required=False,
    )
    @_ended_by_interrupts
    def uploaded_archive(context: dg.AssetExecutionContext) -> Iterator[Any]:
        done, failed = _sorted(context, upload(context, context.partition_keys))
        yield from _report(context, pipeline, names.uploaded_archive, done, failed)

    def upload(context: dg.AssetExecutionContext, partitions: Sequence[str]) -> Iterator[Outcome]:
        return upload_partitions(
            partitions,
            pipeline,
            getattr(context.resources, names.store).open(),
            _log_progress(context.log),
            _repacking(context.run.tags, pipeline),
            tell=context.log.warning,
        )

    return [queue, sealed_slot, packed_archive, uploaded_archive]


def _ended_by_interrupts(step: _Step) -> _Step:
    """`Terminate` and Ctrl-C end the step; Dagster's retry policy would start it once more."""

    @functools.wraps(step)
    def ended(context: dg.AssetExecutionContext) -> Iterator[Any]:
        try:
            yield from step(context)
        except (KeyboardInterrupt, DagsterExecutionInterruptedError) as interrupt:
            raise dg.Failure(
                "interrupted; what it did not finish is kept and will be asked for again",
                allow_retries=False,
            ) from interrupt

    return ended


def _repacking(tags: Mapping[str, str], pipeline: Pipeline) -> Repacking | None:
    """How stored archives are fetched back, if the run was asked to pack them anew."""
    if tags.get(REPACK_TAG) != "true":
        return None
    return Repacking(ArchiveFinder({pipeline.name: pipeline}).open)


def _sorted(
    context: dg.AssetExecutionContext, outcomes: Iterable[Outcome]
) -> tuple[list[Done], list[Failed]]:
    """What got through and what failed, which is said in the run's log as it happens."""
    done: list[Done] = []
    failed: list[Failed] = []
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            failed.append(outcome)
            context.log.error(f"{outcome.partition} failed and was kept: {outcome.error}")
        else:
            done.append(outcome)
    return done, failed


def _is_final(
    context: dg.AssetExecutionContext, pipeline: Pipeline, failed: Sequence[Failed]
) -> bool:
    """Whether the step fails for good: no attempt is left, or none could help."""
    if not failed:
        return False
    return context.retry_number >= pipeline.max_retries or all(one.permanent for one in failed)


def _report(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    asset: dg.AssetKey,
    done: Sequence[Done],
    failed: Sequence[Failed],
) -> Iterator[Any]:
    if not failed:
        for one in done:
            context.add_asset_metadata(_metadata(one), partition_key=one.partition)
        yield dg.MaterializeResult()
        return
    final = _is_final(context, pipeline, failed)
    if final:
        for one in done:
            yield _materialized(asset, one)
    raise dg.Failure(
        _failure_text(failed), metadata={"failed": len(failed)}, allow_retries=not final
    )


def _materialized(asset: dg.AssetKey, done: Done) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(asset, partition=done.partition, metadata=_metadata(done))


def _failure_text(failed: Sequence[Failed]) -> str:
    listed = "; ".join(f"{one.partition}: {one.error}" for one in failed[:MAX_LISTED_FAILURES])
    more = len(failed) - MAX_LISTED_FAILURES
    tail = f"; and {more} more" if more > 0 else ""
    return f"{len(failed)} partitions failed, their data is kept: {listed}{tail}"


def _metadata(done: Done) -> dict[str, Any]:
    if done.receipt is not None:
        metadata = receipt_metadata(done.receipt)
    elif done.packed is not None:
        metadata = _archive_metadata(done.packed)
    else:
        return {"note": done.note} if done.note else {}
    metadata["seconds"] = round(done.seconds, 3)
    if done.packed is None:
        metadata["note"] = (
            "stored before; nothing was left to do "
            f"(to pack it anew, give the run the tag {REPACK_TAG}: true)"
        )
    return metadata


def receipt_metadata(receipt: Receipt) -> dict[str, Any]:
    """What the UI shows of a stored archive."""
    return {
        **_archive_metadata(receipt),
        "address": _address(receipt.address),
        "object_key": receipt.key,
        "stored_at": receipt.stored_at,
    }


def _archive_metadata(archive: Packed | Receipt) -> dict[str, Any]:
    return {
        "messages": archive.messages,
        "payload_bytes": archive.payload_bytes,
        "archive_bytes": archive.size_bytes,
        "ratio": round(archive.payload_bytes / max(1, archive.size_bytes), 2),
        "sha256": archive.sha256,
    }


def _address(address: str) -> dg.MetadataValue[Any]:
    if address.startswith("file://"):
        return dg.MetadataValue.path(address.removeprefix("file://"))
    return dg.MetadataValue.url(address)


def _log_progress(log: logging.Logger) -> Callable[[str], Progress]:
    """Progress of large uploads, a line every few seconds each."""

    def of(partition: str) -> Progress:
        last = time.monotonic()

        def report(sent: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= PROGRESS_SECONDS:
                last = time.monotonic()
                log.info(f"{partition}: {sent:,} of {total:,} bytes are stored")

        return report

    return of
