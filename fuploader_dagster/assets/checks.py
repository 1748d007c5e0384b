"""The asset checks: what an operator asks of a pipeline.

`archive_matches_seal`, of `uploaded_archive`: does the store hold what was sealed? It runs after
each upload, for the partitions of the run; executed by hand, for the newest ones. It compares size
and digest as the store states them, and the number of members in the manifest, with the receipt
(which has them from the seal). Two small requests per archive. It reports `store_reachable` too:
Dagster shows a check's result only until the asset is materialised again.

All others are judged by `health/judging.py`, as in `fuploader status`. They cost no run: the watch
schedule reports each change, and the drain sensor those of `store_reachable` and
`dead_letters_below_limit` at once. Executed by hand, they look now.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.scrub import Finding, examine
from fuploader_dagster.delivery.store_trouble import known_trouble, look_again
from fuploader_dagster.delivery.trouble_note import TroubleNote
from fuploader_dagster.errors import TemporaryError
from fuploader_dagster.health import judging
from fuploader_dagster.health.judging import Judgement, judge
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line
from fuploader_dagster.slots.receipts import Receipt, find_receipts, receipts_between

CHECK_NAME = "archive_matches_seal"
JUDGED = {
    "being_drained": "Somebody takes the messages that wait in the queue.",
    "keeping_up": "Messages are stored in time, and the queue does not grow faster than it is "
    "drained: seal_age_seconds and late_after_seconds say what is late.",
    "disk_room": "The drain does not pause for lack of disk space, now or within a day.",
    "nothing_lost": "All acknowledged messages are in an active slot, in a sealed one, or stored.",
}
"""The checks without a module of their own, and what they mean."""
NEWEST = 64
LISTED_PROBLEMS = 10


def build_check(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    """The check of a pipeline's stored archives."""
    names = Names.of(pipeline)

    @dg.asset_check(
        asset=names.uploaded_archive,
        name=CHECK_NAME,
        description="Size, digest and number of members in the store match what was sealed.",
    )
    def archive_matches_seal(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        receipts = _receipts(context, pipeline)
        finder = ArchiveFinder({pipeline.name: pipeline})
        try:
            with ThreadPoolExecutor(pipeline.upload_threads, "check") as threads:
                findings = list(
                    threads.map(
                        lambda one: examine(one, lambda r: finder.of_receipt(r, pipeline).source),
                        receipts,
                    )
                )
        except TemporaryError as error:
            return dg.AssetCheckResult(
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"The archives could not be checked: {error}",
            )
        served = any(not one.problems for one in findings)
        if served and known_trouble(pipeline.layout) is None:
            answers: Any = reachable(pipeline, None)  # log_event takes it; its annotation does not
            context.op_execution_context.log_event(answers)
        return _result(receipts, findings)

    return archive_matches_seal


def build_reachable_check(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    """The check that the store answers, and does not refuse us."""

    @dg.asset_check(
        asset=Names.of(pipeline).uploaded_archive,
        name=Names.of(pipeline).reachable_check.name,
        description="The object store answers, and does not refuse us.",
    )
    def store_reachable() -> dg.AssetCheckResult:
        look_again(pipeline.layout, pipeline.store.open())
        trouble = known_trouble(pipeline.layout)
        return dg.AssetCheckResult(
            passed=trouble is None, description=str(trouble or "the object store answers")
        )

    return store_reachable


def reachable(pipeline: Pipeline, trouble: TroubleNote | None) -> dg.AssetCheckEvaluation:
    """The result of `store_reachable`, reported without a run of that check."""
    return dg.AssetCheckEvaluation(
        asset_key=Names.of(pipeline).uploaded_archive,
        check_name=Names.of(pipeline).reachable_check.name,
        passed=trouble is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(trouble or "no upload is waiting for the store"),
    )


def check_keys(names: Names) -> Mapping[str, dg.AssetCheckKey]:
    """By name, the checks that are judged, each at the asset that it is about."""
    return {
        **{name: dg.AssetCheckKey(names.queue, name) for name in JUDGED},
        "nothing_lost": dg.AssetCheckKey(names.sealed_slot, "nothing_lost"),
        "store_reachable": names.reachable_check,
        "dead_letters_below_limit": dg.AssetCheckKey(
            names.dead_letters, "dead_letters_below_limit"
        ),
    }


def build_judged_checks(pipeline: Pipeline) -> list[dg.AssetChecksDefinition]:
    """The checks of queue and slots."""
    return [_judged_check(pipeline, name, what) for name, what in JUDGED.items()]


def _judged_check(pipeline: Pipeline, name: str, what: str) -> dg.AssetChecksDefinition:
    key = check_keys(Names.of(pipeline))[name]

    @dg.asset_check(asset=key.asset_key, name=name, description=what)
    def check() -> dg.AssetCheckResult:
        found = {one.check: one for one in judge(pipeline, judging.look(pipeline))}
        new = evaluation(pipeline, found[name])
        return dg.AssetCheckResult(
            passed=new.passed,
            severity=new.severity,
            description=new.description,
            metadata=new.metadata,
        )

    return check


def evaluation(pipeline: Pipeline, one: Judgement) -> dg.AssetCheckEvaluation:
    """A judgement as the result of its check."""
    key = check_keys(Names.of(pipeline))[one.check]
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=one.passed,
        severity=dg.AssetCheckSeverity.ERROR if one.serious else dg.AssetCheckSeverity.WARN,
        description=in_a_line(one.found if one.passed else f"{one.found}. What to do: {one.hint}"),
        metadata=dict(one.numbers),
    )


def _receipts(context: dg.AssetCheckExecutionContext, pipeline: Pipeline) -> list[Receipt]:
    if context.has_partition_key or context.has_partition_key_range:
        return list(find_receipts(pipeline.layout, context.partition_keys).values())
    return list(receipts_between(pipeline.layout).values())[-NEWEST:]


def _result(receipts: list[Receipt], findings: list[Finding]) -> dg.AssetCheckResult:
    bad = [
        f"{one.partition} ({one.address}): {'; '.join(one.problems)}"
        for one in findings
        if one.problems
    ]
    return dg.AssetCheckResult(
        passed=not bad,
        description=(
            "; ".join(bad[:LISTED_PROBLEMS])
            or f"{counted(len(receipts), 'archive matches', 'archives match')} what was sealed"
        ),
        metadata={
            "archives": len(receipts),
            "members": sum(receipt.members for receipt in receipts),
            "bytes": sum(receipt.size_bytes for receipt in receipts),
            "wrong": len(bad),
        },
    )
