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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import dagster as dg

from fuploader_dagster.assets import outcomes
from fuploader_dagster.assets.overrides import object_store_of
from fuploader_dagster.assets.partitions import Names, slots_per_run
from fuploader_dagster.assets.run_machine import note_machine
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery import notices
from fuploader_dagster.delivery.attempts import Outcome
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
UNWATCHED_AFTER = timedelta(minutes=15)
"""Without a report for this long, nobody looks after the pipeline."""
WARNED_BEFORE = 0.9
"""The part of `archives_within_hours` after which Dagster warns."""
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
        owners=pipeline.owners,
        tags=pipeline.tags,
        freshness_policy=dg.FreshnessPolicy.time_window(
            fail_window=UNWATCHED_AFTER, warn_window=UNWATCHED_AFTER / 3
        ),
        description=f"Messages that wait in {pipeline.source.describe()}. The schedule "
        f"{names.watch_schedule} reports once a minute how the pipeline is doing: the plots show "
        "it over time, the checks say what is wrong.",
    )
    sealed_slot = dg.AssetSpec(
        names.sealed_slot,
        deps=[names.queue],
        partitions_def=names.partitions(),
        group_name=names.scope,
        kinds={"file"},
        owners=pipeline.owners,
        tags=pipeline.tags,
        description="Sealed slots on the local disk, reported by the drain sensor: what was "
        "drained and never changes again. Each is a partition, and becomes an archive.",
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
        note_machine(context)
        _refuse_former_tag(context, names)
        with outcomes.ended_by_interrupts(UNFINISHED):
            step = Step(context, pipeline, pack_partitions(context.partition_keys, pipeline))
            if step.is_final:
                yield from step.ship([names.uploaded_archive])
            yield from step.report(names.packed_archive)

    @made(
        pipeline,
        names.uploaded_archive,
        made_of=packed_archive,
        kind=type(pipeline.store).__name__.removesuffix("Settings").lower(),
        description=f"Archives that the store has confirmed: {pipeline.store.describe()}",
        freshness_policy=_freshness(pipeline),
    )
    def uploaded_archive(context: dg.AssetExecutionContext) -> Iterator[Any]:
        note_machine(context)
        _refuse_former_tag(context, names)
        with outcomes.ended_by_interrupts(UNFINISHED):
            step = Step(context, pipeline, _upload(context, pipeline, context.partition_keys))
            yield from step.report(names.uploaded_archive)

    processed = [processed_slot] if processed_slot else []
    return [queue, sealed_slot, *processed, packed_archive, uploaded_archive]


def _freshness(pipeline: Pipeline) -> dg.FreshnessPolicy | None:
    """How often an archive is expected; None if the queue may be quiet."""
    if pipeline.archives_within_hours is None:
        return None
    window = timedelta(hours=pipeline.archives_within_hours)
    return dg.FreshnessPolicy.time_window(fail_window=window, warn_window=window * WARNED_BEFORE)


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
        note_machine(context)
        if is_redo(context):
            yield from _redone(context, pipeline)
            return
        with outcomes.ended_by_interrupts(UNFINISHED):
            tried = process_partitions(
                context.partition_keys, pipeline, outcomes.log_items(context.log)
            )
            step = Step(context, pipeline, tried)
            if step.is_final:
                yield from step.ship(names.archives)
            yield from step.report_processed()

    return processed_slot


def _redone(context: dg.AssetExecutionContext, pipeline: Pipeline) -> Iterator[Any]:
    """Process stored partitions again, and report their new archives too: what a redo makes is
    stored when it is done."""
    names = Names.of(pipeline)
    with outcomes.ended_by_interrupts("what is stored is untouched; the next attempt goes on"):
        tried = redo_partitions(
            context.partition_keys,
            pipeline,
            object_store_of(context.resources, pipeline).open(),
            ArchiveFinder({pipeline.name: pipeline}).open,
            outcomes.log_progress(context.log),
            items=outcomes.log_items(context.log),
            tell=context.log.warning,
        )
        step = Step(context, pipeline, tried)
        if step.is_final or not step.failed:
            yield from outcomes.materialized(names.archives, step.done, names)
        yield from step.report_processed()


class Step:
    """An attempt of a step, and what became of its partitions."""

    def __init__(
        self, context: dg.AssetExecutionContext, pipeline: Pipeline, tried: Iterable[Outcome]
    ) -> None:
        """Take the partitions through the step: `tried` come as they are read."""
        self._context, self._pipeline, self._names = context, pipeline, Names.of(pipeline)
        self.done, self.failed = outcomes.sorted_outcomes(context.log, tried)
        notices.settle(pipeline)
        last = context.retry_number >= pipeline.max_retries
        self.is_final = bool(self.failed) and (last or all(one.permanent for one in self.failed))
        """It fails for good: no attempt is left, or none could help."""

    def report(self, asset: dg.AssetKey) -> Iterator[Any]:
        """Report what got through, and fail for the others."""
        if not self.failed:
            for one in self.done:
                metadata = outcomes.metadata_of(asset, one, self._names)
                self._context.add_asset_metadata(metadata, partition_key=one.partition)
            yield dg.MaterializeResult()
            return
        if self.is_final:
            yield from outcomes.materialized([asset], self.done, self._names)
        raise outcomes.failure(self.failed, final=self.is_final)

    def report_processed(self) -> Iterator[Any]:
        """Report processed slots, and whether each of their items is accounted for."""
        asset = self._names.processed_slot
        processed = [one.processed for one in self.done if one.processed]
        wrong = unaccounted(processed, self._pipeline.layout)
        items, letters = sum(one.inputs for one in processed), sum(one.failed for one in processed)
        results = sum(one.results for one in processed)
        partial = sum(one.partial for one in processed)
        said = f"{counted(items, 'item')}, {letters:,} of them dead letters"
        if partial:
            some = counted(partial, "item has", "items have")
            said += f"; {some} some of their results, and a dead letter for the others"
        yield dg.AssetCheckResult(
            check_name=ACCOUNT_CHECK,
            asset_key=asset,
            passed=not wrong,
            description="; ".join(wrong) or said,
            metadata={"items": items, "failed": letters, "results": results},
        )
        yield from self.report(asset)

    def ship(self, assets: Sequence[dg.AssetKey]) -> Iterator[dg.AssetMaterialization]:
        """Ship what got through a step that fails, if the run was asked for these later assets:
        Dagster skips their steps."""
        log, done = self._context.log, self.done
        selection = self._context.run.asset_selection  # none: all that the job has
        if not done or (selection and self._names.uploaded_archive not in selection):
            return
        try:
            tried = _upload(self._context, self._pipeline, [one.partition for one in done])
            uploaded, _ = outcomes.sorted_outcomes(log, tried)
        except FuploaderError as error:
            log.error(f"{counted(len(done), 'slot waits', 'slots wait')} for upload: {error}")
            return
        yield from outcomes.materialized(assets, uploaded, self._names)


def _upload(
    context: dg.AssetExecutionContext, pipeline: Pipeline, partitions: Sequence[str]
) -> Iterator[Outcome]:
    return upload_partitions(
        partitions,
        pipeline,
        object_store_of(context.resources, pipeline).open(),
        outcomes.log_progress(context.log),
        tell=context.log.warning,
    )


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
    freshness_policy: dg.FreshnessPolicy | None = None,
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
        owners=pipeline.owners,
        tags=pipeline.tags,
        backfill_policy=dg.BackfillPolicy.multi_run(slots or slots_per_run(pipeline)),
        pool=pool,
        check_specs=check_specs,
        freshness_policy=freshness_policy,
        io_manager_key=names.archives_resource if key in names.archives else None,
        retry_policy=outcomes.retry_policy(pipeline),
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
