"""The assets of a pipeline: queue -> sealed_slot -> packed_archive -> uploaded_archive.

The drain workers fill and seal the slots, outside of Dagster. The two assets of archives take the
partitions of a run, call one function of the engine, and report each partition's outcome.

A partition that fails takes no other with it. While attempts are left the step raises and reports
nothing: the next attempt finds what is done and skips it. After the last attempt it reports the
good partitions and fails for the others, which stay on disk for the recovery schedule. Dagster
skips the upload after a packing step that failed, so that step uploads its good partitions itself.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg

from fuploader_dagster.assets.outcomes import (
    ended_by_interrupts,
    failure,
    log_progress,
    materialized,
    metadata_of,
    retry_policy,
    sorted_outcomes,
)
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.delivery.attempts import Done, Failed, Outcome
from fuploader_dagster.delivery.ship import pack_partitions, upload_partitions
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.settings.pipeline import Pipeline

FORMER_REPACK_TAG = "fuploader/repack"
"""Made a run of the assets re-pack, before that was a job."""
_UNFINISHED = "what it did not finish is kept and will be asked for again"


def build_archive_assets(pipeline: Pipeline) -> Sequence[dg.AssetSpec | dg.AssetsDefinition]:
    """The four assets of a pipeline, in one group that is named for it."""
    with warnings.catch_warnings():  # its one warning, that it is in beta, is known
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _build_assets(pipeline)


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

    @_archives(
        pipeline,
        names.packed_archive,
        made_of=sealed_slot,
        kind="zstandard",
        description="One archive for each sealed slot, read back after it was written.",
    )
    def packed_archive(context: dg.AssetExecutionContext) -> Iterator[Any]:
        _refuse_former_tag(context, names)
        with ended_by_interrupts(_UNFINISHED):
            outcomes = pack_partitions(context.partition_keys, pipeline)
            done, failed = sorted_outcomes(context.log, outcomes)
            if _is_final(context, pipeline, failed) and _uploads(context, names):
                try:
                    outcomes = upload(context, [one.partition for one in done])
                    uploaded, _ = sorted_outcomes(context.log, outcomes)
                except FuploaderError as error:
                    context.log.error(f"{len(done)} archives wait for their upload: {error}")
                else:
                    for one in uploaded:
                        yield materialized(names.uploaded_archive, one, names)
            yield from _report(context, pipeline, names.packed_archive, done, failed)

    @_archives(
        pipeline,
        names.uploaded_archive,
        made_of=packed_archive,
        kind=type(pipeline.store).__name__.removesuffix("Settings").lower(),
        description=f"Archives that the store has confirmed: {pipeline.store.describe()}",
    )
    def uploaded_archive(context: dg.AssetExecutionContext) -> Iterator[Any]:
        _refuse_former_tag(context, names)
        with ended_by_interrupts(_UNFINISHED):
            done, failed = sorted_outcomes(context.log, upload(context, context.partition_keys))
            yield from _report(context, pipeline, names.uploaded_archive, done, failed)

    def upload(context: dg.AssetExecutionContext, partitions: Sequence[str]) -> Iterator[Outcome]:
        return upload_partitions(
            partitions,
            pipeline,
            getattr(context.resources, names.store).open(),
            log_progress(context.log),
            tell=context.log.warning,
        )

    return [queue, sealed_slot, packed_archive, uploaded_archive]


def _archives(
    pipeline: Pipeline,
    key: dg.AssetKey,
    *,
    made_of: dg.AssetSpec | dg.AssetsDefinition,
    kind: str,
    description: str,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """The decorator of an asset that a run makes, a partition for each slot."""
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
        backfill_policy=dg.BackfillPolicy.multi_run(pipeline.partitions_per_run),
        retry_policy=retry_policy(pipeline),
        automation_condition=dg.AutomationCondition.on_missing() if automation else None,
        output_required=False,
    )


def _refuse_former_tag(context: dg.AssetExecutionContext, names: Names) -> None:
    if FORMER_REPACK_TAG in context.run.tags:
        raise dg.Failure(
            f"The tag {FORMER_REPACK_TAG} does nothing any more, so nothing was done. To re-pack "
            f"these partitions launch the job {names.repack_job} for them.",
            allow_retries=False,
        )


def _uploads(context: dg.AssetExecutionContext, names: Names) -> bool:
    """Whether the run was asked to upload as well."""
    selection = context.run.asset_selection  # none: all that the job has
    return not selection or names.uploaded_archive in selection


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
    names = Names.of(pipeline)
    if not failed:
        for one in done:
            context.add_asset_metadata(metadata_of(one, names), partition_key=one.partition)
        yield dg.MaterializeResult()
        return
    final = _is_final(context, pipeline, failed)
    if final:
        for one in done:
            yield materialized(asset, one, names)
    raise failure(failed, final=final)
