"""The asset checks of `uploaded_archive`: does the store hold what was sealed, and does it answer?

`archive_matches_seal` runs after each upload, for the partitions of the run; executed by hand, for
the newest ones. It compares size and digest as the store states them, and the number of members in
the manifest, with the receipt (which has them from the seal). Two small requests per archive.

`store_reachable` costs no run: the drain sensor reports each change, from what runs and the
recovery schedule have noted. Executed by hand, it looks at the store.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

from concurrent.futures import ThreadPoolExecutor

import dagster as dg

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.scrub import Finding, examine
from fuploader_dagster.delivery.store_trouble import look
from fuploader_dagster.errors import TemporaryError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, find_receipts, receipts_between

CHECK_NAME = "archive_matches_seal"
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
        return _result(receipts, findings)

    return archive_matches_seal


def build_reachable_check(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    """The check that the store answers."""

    @dg.asset_check(
        asset=Names.of(pipeline).uploaded_archive,
        name=Names.of(pipeline).reachable_check.name,
        description="The object store answers.",
    )
    def store_reachable() -> dg.AssetCheckResult:
        error = look(pipeline.store.open())
        return dg.AssetCheckResult(
            passed=not error, description=error or "the object store answers"
        )

    return store_reachable


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
            "; ".join(bad[:LISTED_PROBLEMS]) or f"{len(receipts):,} archives match what was sealed"
        ),
        metadata={
            "archives": len(receipts),
            "members": sum(receipt.members for receipt in receipts),
            "bytes": sum(receipt.size_bytes for receipt in receipts),
            "wrong": len(bad),
        },
    )
