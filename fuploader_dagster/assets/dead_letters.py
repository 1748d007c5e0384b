"""The dead letters in the UI: an asset with count and reasons, and a check that warns of many.

Neither costs a run: the drain sensor reports both, at most once a minute and only when something
changed. The check can also be executed by hand.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

import time
from typing import Any

import dagster as dg
import msgspec

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.dead_letters.counts import DeadLetterCounts, read_counts
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

CHECK_NAME = "dead_letters_below_limit"
REPORT_SECONDS = 60.0
LISTED_REASONS = 20


class Reported(msgspec.Struct):
    """What was last reported."""

    at: float = 0.0
    total: int = 0
    warned: bool = False


def build_dead_letter_asset(pipeline: Pipeline) -> dg.AssetSpec:
    """The asset, without partitions; the drain workers make it."""
    names = Names.of(pipeline)
    return dg.AssetSpec(
        names.dead_letters,
        deps=[names.queue],
        group_name=names.scope,
        kinds={"file"},
        owners=pipeline.owners,
        tags=pipeline.tags,
        description=(
            "Messages that could not become files, each kept whole with the reason. "
            "`fuploader dead-letters` lists, shows and exports them, and sends them back; the jobs "
            f"{names.requeue_job}, {names.export_letters_job} and {names.discard_job} do so here."
        ),
    )


def build_dead_letter_check(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    """The check: at most `max_dead_letters_per_hour` within the last hour."""

    @dg.asset_check(
        asset=Names.of(pipeline).dead_letters,
        name=CHECK_NAME,
        description="At most max_dead_letters_per_hour new dead letters within the last hour.",
    )
    def dead_letters_below_limit() -> dg.AssetCheckResult:
        counts = read_counts(pipeline.layout)
        return dg.AssetCheckResult(**_judged(pipeline, counts, time.time()))

    return dead_letters_below_limit


def report(
    pipeline: Pipeline, last: Reported, now: float
) -> tuple[list[dg.AssetMaterialization | dg.AssetCheckEvaluation], Reported]:
    """What a tick has to report, and what to remember of it."""
    if now - last.at < REPORT_SECONDS:
        return [], last
    counts = read_counts(pipeline.layout)
    judged = _judged(pipeline, counts, now)
    warned = not judged["passed"]
    if (counts.total, warned) == (last.total, last.warned):
        return [], last
    names = Names.of(pipeline)
    events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = [
        dg.AssetCheckEvaluation(asset_key=names.dead_letters, check_name=CHECK_NAME, **judged)
    ]
    if counts.total != last.total:
        events.insert(
            0,
            dg.AssetMaterialization(
                names.dead_letters, metadata=letters_metadata(pipeline, counts)
            ),
        )
    return events, Reported(now, counts.total, warned)


def _judged(pipeline: Pipeline, counts: DeadLetterCounts, now: float) -> dict[str, Any]:
    """What the check found, as Dagster takes it, reported or executed."""
    recent, most = counts.last_hour(now), pipeline.max_dead_letters_per_hour
    return {
        "passed": recent <= most,
        "severity": dg.AssetCheckSeverity.WARN,
        "description": f"{counted(recent, 'dead letter')} within the last hour; "
        f"the limit is {most:,}",
        "metadata": {"last_hour": recent, "dead_letters": counts.total},
    }


def letters_metadata(pipeline: Pipeline, counts: DeadLetterCounts) -> dict[str, Any]:
    """What the UI shows of the asset."""
    listed = list(counts.reasons.items())[:LISTED_REASONS]
    columns = [dg.TableColumn("messages", "int"), dg.TableColumn("reason", "string")]
    return {
        "dead_letters": counts.total,
        "reasons": dg.MetadataValue.table(
            records=[
                dg.TableRecord({"messages": count, "reason": in_a_line(reason)})
                for reason, count in listed
            ],
            schema=dg.TableSchema(columns),
        ),
        "folder": dg.MetadataValue.path(str(pipeline.layout.dead_letters)),
    }
