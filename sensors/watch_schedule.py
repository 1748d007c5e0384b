"""The watch: once a minute it reports how the pipeline is doing, whether or not it is drained.

It materialises the asset `queue` with figures that Dagster plots, and reports each asset check
whose result changed or is no longer shown. That costs Dagster one event a minute and no run;
`old_history` removes old ones. It is a schedule because ticks of sensors hold up each other, and a
queue may take seconds to say what waits in it. It starts nothing and stops nothing: with the drain
switched off it says so.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from fuploader_dagster.assets.checks import check_keys, evaluation
from fuploader_dagster.assets.dead_letters import letters_metadata
from fuploader_dagster.assets.outcomes import moment
from fuploader_dagster.assets.overrides import queue_and_state, with_resources
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.dead_letters.counts import read_counts
from fuploader_dagster.delivery.store_trouble import still_in_trouble
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.health.balance import tidy
from fuploader_dagster.health.figures import reading_of, sealed_now
from fuploader_dagster.health.judging import Judgement, Look, failing, judge, look
from fuploader_dagster.health.remembered import remember
from fuploader_dagster.sensors.default_status import schedule_status
from fuploader_dagster.sensors.dry_runs import SAID, is_dry_run
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

_LARGE = (
    "unshipped_bytes",
    "disk_free_bytes",
    "acknowledged_messages",
    "stored_messages",
    "stored_bytes",
)
"""Dagster's UI does not plot whole numbers of more than 31 bits."""
_FIGURES = re.compile(r"[0-9][0-9.,:TZ-]*")


class LookFailed(Exception):
    """Fails the tick with one sentence, so that the UI shows it."""


def build_watch_schedule(pipeline: Pipeline, *, running: bool = True) -> dg.ScheduleDefinition:
    """The watch of a pipeline, once a minute. It launches no runs."""
    names = Names.of(pipeline)

    @dg.schedule(
        name=names.watch_schedule,
        job_name=names.ship_job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=schedule_status(running=running),
        required_resource_keys=queue_and_state(pipeline),
        description="Reports depth, rates, space and what is wrong, at the asset queue and its "
        "checks.",
    )
    def watch(context: dg.ScheduleEvaluationContext, **_: Any) -> dg.SkipReason:
        dry, used = is_dry_run(context), with_resources(pipeline, context)
        try:
            if not dry:
                still_in_trouble(pipeline)
            seen = look(used)
        except (FuploaderError, OSError) as error:
            raise LookFailed(in_a_line(f"cannot look at {pipeline.name}: {error}")) from None
        judgements = judge(used, seen)
        if dry:
            return dg.SkipReason(f"{SAID}; a tick would report: {in_a_sentence(judgements, seen)}")
        report(context.instance, pipeline, seen, judgements)
        if pipeline.layout.root.is_dir():
            tidy(pipeline.layout, sealed_now(pipeline.layout))
            remember(pipeline.layout, reading_of(seen.figures))
        return dg.SkipReason(in_a_sentence(judgements, seen))

    return watch


def report(
    instance: dg.DagsterInstance, pipeline: Pipeline, seen: Look, judgements: Sequence[Judgement]
) -> None:
    """Report the figures, the checks whose result is another one than before or is not shown any
    more, and once that there are no dead letters, or how many: later the drain sensor reports each
    change."""
    names = Names.of(pipeline)
    instance.report_runless_asset_event(
        dg.AssetMaterialization(names.queue, metadata=metadata_of(pipeline, seen))
    )
    if instance.get_latest_materialization_event(names.dead_letters) is None:
        counts = read_counts(pipeline.layout)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(names.dead_letters, metadata=letters_metadata(pipeline, counts))
        )
    keys = check_keys(names)
    before = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [keys[one.check] for one in judgements]
    )
    for one in judgements:
        new = _reported(evaluation(pipeline, one))
        last = before.get(keys[one.check])
        if (
            last is None
            or last.evaluation is None
            or _differs(last.evaluation, new)
            or _is_hidden(last.run_id, last.create_timestamp, new.asset_key, instance)
        ):
            instance.report_runless_asset_event(new)


def _reported(new: dg.AssetCheckEvaluation) -> dg.AssetCheckEvaluation:
    """Without the figures of a result that stays for as long as nothing is wrong: those of now are
    at the queue."""
    if not new.passed:
        return new
    return dg.AssetCheckEvaluation(
        asset_key=new.asset_key,
        check_name=new.check_name,
        passed=True,
        severity=new.severity,
        description="nothing has been wrong since then",
    )


def _differs(last: dg.AssetCheckEvaluation, new: dg.AssetCheckEvaluation) -> bool:
    """Whether the result is news. In the sentence of one that fails, figures may change."""
    if (last.passed, last.severity) != (new.passed, new.severity):
        return True
    return not new.passed and _gist(last.description) != _gist(new.description)


def _is_hidden(
    run_id: str, reported_at: float, asset: dg.AssetKey, instance: dg.DagsterInstance
) -> bool:
    """Whether Dagster shows a result as "Not evaluated": the asset was materialised after it, and
    not by the run that reported it. So somebody who runs a check that is red would see it gray."""
    newest = instance.get_latest_materialization_event(asset)
    return newest is not None and newest.run_id != run_id and newest.timestamp >= reported_at


def _gist(sentence: str | None) -> str:
    return _FIGURES.sub("#", sentence or "")


def in_a_sentence(judgements: Sequence[Judgement], seen: Look) -> str:
    """What the tick shows, in one line."""
    waiting = seen.figures.queue.waiting
    wait = (
        "an unknown number of messages wait"
        if waiting is None
        else counted(waiting, "message waits", "messages wait")
    )
    wrong = [f"{one.check}: {one.found}" for one in failing(judgements)]
    said = "; ".join(wrong) or "all is well"
    return in_a_line(
        f"{wait}, {counted(seen.figures.consumers, 'worker takes', 'workers take')} them; {said}"
    )


def metadata_of(pipeline: Pipeline, seen: Look) -> dict[str, Any]:
    """The figures as Dagster shows and plots them. What is not known is left out."""
    figures, rates = seen.figures, seen.rates
    depth, last = figures.queue.depth, figures.stored.last_stored_at
    numbers: Mapping[str, int | float | None] = {
        "depth": figures.queue.waiting,
        "in_hand": depth.in_hand if depth else None,
        "consumers": figures.consumers,
        "messages_in_per_second": _rounded(rates.messages_in if rates else None),
        "messages_out_per_second": _rounded(rates.messages_out if rates else None),
        "bytes_out_per_second": _rounded(rates.bytes_out if rates else None),
        "oldest_unshipped_seconds": round(figures.oldest_unshipped_seconds, 1),
        "unshipped_bytes": figures.space.unshipped_bytes,
        "unshipped_slots": figures.sealed_slots,
        "disk_free_bytes": figures.space.free_bytes,
        "disk_days_left": _rounded(seen.disk_days_left(pipeline)),
        "dead_letters_waiting": figures.dead_letters_waiting,
        "acknowledged_messages": figures.messages_in,
        "stored_messages": figures.stored.messages,
        "stored_archives": figures.stored.archives,
        "stored_bytes": figures.stored.archive_bytes,
        "store_requests": figures.stored.requests,
    }
    found: dict[str, Any] = {
        name: float(one) if name in _LARGE else one
        for name, one in numbers.items()
        if one is not None
    }
    if last:
        found["last_upload"] = moment(last)
    troubles = (figures.queue.trouble, str(figures.state_trouble or ""))
    trouble = "; ".join(filter(None, troubles))
    if trouble:
        found["trouble"] = in_a_line(trouble)
    if any(one.problem for one in figures.workers):
        found["workers"] = _workers(seen)
    return found


def _workers(seen: Look) -> dg.TableMetadataValue:
    """What each worker of this node says of itself."""
    columns = {"worker": "int", "doing": "string", "messages_per_second": "float"}
    columns |= {"messages": "int", "problem": "string"}
    return dg.MetadataValue.table(
        records=[
            dg.TableRecord(
                {
                    "worker": one.worker,
                    "doing": one.doing,
                    "messages_per_second": round(one.messages_per_second, 1),
                    "messages": one.messages,
                    "problem": in_a_line(one.problem),
                }
            )
            for one in seen.figures.workers
        ],
        schema=dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()]),
    )


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 3)
