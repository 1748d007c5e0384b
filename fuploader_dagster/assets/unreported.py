"""Archives that are stored, but whose run ended before it could report them.

A run reports its partitions when a step of it is over. Killed or interrupted before that, it leaves
archives with a receipt that Dagster shows as missing, and nothing else would report them: their
slots are gone, so no further run is asked for.
"""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from fuploader_dagster.assets.outcomes import receipt_metadata
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import find_receipts


def report_unreported(
    instance: dg.DagsterInstance, pipeline: Pipeline, keys: Collection[str]
) -> int:
    """Report each of the partitions that has a receipt and was never materialised; how many."""
    asset = Names.of(pipeline).uploaded_archive
    if not (receipts := find_receipts(pipeline.layout, keys)):
        return 0
    unreported = receipts.keys() - instance.get_materialized_partitions(asset)
    for key in sorted(unreported):
        metadata = {
            **receipt_metadata(receipts[key]),
            "note": "stored by a run that ended before it could report this",
        }
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=key, metadata=metadata)
        )
    return len(unreported)
