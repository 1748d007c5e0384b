"""A pipeline's assets: queue, sealed_slot, processed_slot, packed_archive, uploaded_archive.

The drain workers fill and seal the slots, outside of Dagster. `processed_slot` is there where a
pipeline has a processor. It and the two assets of archives take the partitions of a run, call one
function of the engine, and report each partition's outcome.

A partition that fails takes no other with it. While attempts are left the step raises and reports
nothing: the next attempt finds what is done and skips it. After the last attempt it reports the
good partitions and fails for the others, which stay on disk for the recovery schedule. Dagster
skips what comes after a step that failed, so that step ships its good partitions itself.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from fuploader_dagster.assets.outcomes import (
    ended_by_interrupts,
    failure,
    log_items,
    log_progress,
    materialized,
    metadata_of,
    retry_policy,
    sorted_outcomes,
)
from fuploader_dagster.assets.partitions import Names, slots_per_run
from fuploader_dagster.delivery.attempts import Done, Failed, Outcome
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.process import process_partitions, unaccounted
from fuploader_dagster.delivery.redo import redo_partitions
from fuploader_dagster.delivery.ship import pack_partitions, upload_partitions
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.settings.pipeline import Pipeline

FORMER_REPACK_TAG = "fuploader/repack"
"""Made a run of the assets re-pack, before that was a job."""
REDO_TAG = "fuploader/redo"
"""Makes a run of `processed_slot` process stored partitions again, with today's code, and a run of
a sink store their rows again."""
ACCOUNT_CHECK = "items_accounted_for"
UNFINISHED = "what it did not finish is kept and will be asked for again"


def build_archive_assets(pipeline: Pipeline) -> Sequence[dg.AssetSpec | dg.AssetsDefinition]:
    """The assets of a pipeline, in one group that is named for it."""
    with quietly():
        return _build_assets(pipeline)


@contextmanager
def quietly() -> Iterator[None]:
    """Without Dagster's one warning about what is used here, that it is in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield


def _build_assets(pipeline: Pipeline) -> Sequence[dg.AssetSpec | dg.AssetsDefinition]:
    names = Names.of(pipeline)
    queue = dg.AssetSpec(
        names.queue,
        group_name=names.scope,
        kinds={type(pipeline.source).__name__.lower()},
        description=f"Messages that wait in {pipeline.source.describe()}",
    )
    sealed_slot = dg.AssetSpec(
        names.sealed_slot,
        deps=[names.queue],
        partitions_def=names.partitions(),
        group_name=names.scope,
        kinds={"file"},
        description="Sealed slots on the local disk, reported by the drain sensor.",
    )

    processed_slot = _processed_slot(pipeline, sealed_slot) if pipeline.process else None

    @made(
        pipeline,
        names.packed_archive,
        made_of=processed_slot or sealed_slot,
        kind="zstandard",
        description="One archive for each sealed slot, read back after it was written.",
    )
    def packed_archive(context: dg.AssetExecutionContext) -> Iterator[Any]:
        _refuse_former_tag(context, names)
        with ended_by_interrupts(UNFINISHED):
            outcomes = pack_partitions(context.partition_keys, pipeline)
            done, failed = sorted_outcomes(context.log, outcomes)
            if is_final(context, pipeline, failed):
                yield from _shipped(context, pipeline, done, (names.uploaded_archive,))
            yield from report(context, pipeline, names.packed_archive, done, failed)

    @made(
        pipeline,
        names.uploaded_archive,
        made_of=packed_archive,
        kind=type(pipeline.store).__name__.removesuffix("Settings").lower(),
        description=f"Archives that the store has confirmed: {pipeline.store.describe()}",
    )
    def uploaded_archive(context: dg.AssetExecutionContext) -> Iterator[Any]:
        _refuse_former_tag(context, names)
        with ended_by_interrupts(UNFINISHED):
            outcomes = _upload(context, pipeline, context.partition_keys)
            done, failed = sorted_outcomes(context.log, outcomes)
            yield from report(context, pipeline, names.uploaded_archive, done, failed)

    processed = [processed_slot] if processed_slot else []
    return [queue, sealed_slot, *processed, packed_archive, uploaded_archive]


def _processed_slot(pipeline: Pipeline, sealed_slot: dg.AssetSpec) -> dg.AssetsDefinition:
    """What came out of the items of each slot."""
    names, settings = Names.of(pipeline), pipeline.process
    assert settings is not None  # noqa: S101 - else it is not called

    @made(
        pipeline,
        names.processed_slot,
        made_of=sealed_slot,
        kind="python",
        description=f"What came out of the items of each slot. Processor: {settings.describe()}",
        pool=settings.pool,
        check_specs=[
            dg.AssetCheckSpec(
                ACCOUNT_CHECK,
                asset=names.processed_slot,
                description="Each item has been processed, or has a dead letter.",
            )
        ],
    )
    def processed_slot(context: dg.AssetExecutionContext) -> Iterator[Any]:
        if is_redo(context):
            yield from _redone(context, pipeline)
            return
        with ended_by_interrupts(UNFINISHED):
            outcomes = process_partitions(context.partition_keys, pipeline, log_items(context.log))
            done, failed = sorted_outcomes(context.log, outcomes)
            if is_final(context, pipeline, failed):
                yield from _shipped(context, pipeline, done, names.archives)
            yield from _report_processed(context, pipeline, done, failed)

    return processed_slot


def _redone(context: dg.AssetExecutionContext, pipeline: Pipeline) -> Iterator[Any]:
    """Process stored partitions again, and report their new archives too: what a redo makes is
    stored when it is done."""
    names = Names.of(pipeline)
    with ended_by_interrupts("what is stored is untouched; the next attempt goes on"):
        outcomes = redo_partitions(
            context.partition_keys,
            pipeline,
            getattr(context.resources, names.store).open(),
            ArchiveFinder({pipeline.name: pipeline}).open,
            log_progress(context.log),
            items=log_items(context.log),
            tell=context.log.warning,
        )
        done, failed = sorted_outcomes(context.log, outcomes)
        if not failed or is_final(context, pipeline, failed):
            yield from materialized(names.archives, done, names)
        yield from _report_processed(context, pipeline, done, failed)


def _report_processed(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    done: Sequence[Done],
    failed: Sequence[Failed],
) -> Iterator[Any]:
    """Report processed slots, and whether each of their items is accounted for."""
    asset = Names.of(pipeline).processed_slot
    processed = [one.processed for one in done if one.processed]
    wrong = unaccounted(processed, pipeline.layout)
    items, letters = (sum(one.inputs for one in processed), sum(one.failed for one in processed))
    yield dg.AssetCheckResult(
        check_name=ACCOUNT_CHECK,
        asset_key=asset,
        passed=not wrong,
        description="; ".join(wrong) or f"{items:,} items, {letters:,} of them dead letters",
        metadata={"items": items, "failed": letters, "results": sum(p.results for p in processed)},
    )
    yield from report(context, pipeline, asset, done, failed)


def _upload(
    context: dg.AssetExecutionContext, pipeline: Pipeline, partitions: Sequence[str]
) -> Iterator[Outcome]:
    return upload_partitions(
        partitions,
        pipeline,
        getattr(context.resources, Names.of(pipeline).store).open(),
        log_progress(context.log),
        tell=context.log.warning,
    )


def _shipped(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    done: Sequence[Done],
    assets: Sequence[dg.AssetKey],
) -> Iterator[dg.AssetMaterialization]:
    """Ship what got through a step that fails, if the run was asked for these later assets: Dagster
    skips their steps."""
    names = Names.of(pipeline)
    selection = context.run.asset_selection  # none: all that the job has
    if not done or (selection and names.uploaded_archive not in selection):
        return
    try:
        outcomes = _upload(context, pipeline, [one.partition for one in done])
        uploaded, _ = sorted_outcomes(context.log, outcomes)
    except FuploaderError as error:
        context.log.error(f"{len(done)} slots wait for their upload: {error}")
        return
    yield from materialized(assets, uploaded, names)


def made(
    pipeline: Pipeline,
    key: dg.AssetKey,
    *,
    made_of: dg.AssetSpec | dg.AssetsDefinition | dg.AssetKey,
    kind: str,
    description: str,
    pool: str | None = None,
    slots: int | None = None,
    check_specs: Sequence[dg.AssetCheckSpec] = (),
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """The decorator of an asset that a run makes, a partition for each slot.

    `slots`: how many a run of just this asset takes, if not as many as one that ships.
    """
    names = Names.of(pipeline)
    automation = pipeline.runs_by == "automation"
    return dg.asset(
        key=key,
        deps=[made_of],
        kinds={kind},
        description=description,
        required_resource_keys={names.store},
        partitions_def=names.partitions(),
        group_name=names.scope,
        backfill_policy=dg.BackfillPolicy.multi_run(slots or slots_per_run(pipeline)),
        pool=pool,
        check_specs=check_specs,
        retry_policy=retry_policy(pipeline),
        automation_condition=dg.AutomationCondition.on_missing() if automation else None,
        output_required=False,
    )


def is_redo(context: dg.AssetExecutionContext) -> bool:
    """Whether the run does again what is done."""
    return context.run.tags.get(REDO_TAG, "").lower() in ("true", "1", "yes")


def _refuse_former_tag(context: dg.AssetExecutionContext, names: Names) -> None:
    if FORMER_REPACK_TAG in context.run.tags:
        raise dg.Failure(
            f"The tag {FORMER_REPACK_TAG} does nothing any more, so nothing was done. To re-pack "
            f"these partitions launch the job {names.repack_job} for them.",
            allow_retries=False,
        )


def is_final(
    context: dg.AssetExecutionContext, pipeline: Pipeline, failed: Sequence[Failed]
) -> bool:
    """Whether the step fails for good: no attempt is left, or none could help."""
    if not failed:
        return False
    return context.retry_number >= pipeline.max_retries or all(one.permanent for one in failed)


def report(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    asset: dg.AssetKey,
    done: Sequence[Done],
    failed: Sequence[Failed],
) -> Iterator[Any]:
    """Report what got through, and fail for the others."""
    names = Names.of(pipeline)
    if not failed:
        for one in done:
            context.add_asset_metadata(metadata_of(asset, one, names), partition_key=one.partition)
        yield dg.MaterializeResult()
        return
    final = is_final(context, pipeline, failed)
    if final:
        yield from materialized([asset], done, names)
    raise failure(failed, final=final)
