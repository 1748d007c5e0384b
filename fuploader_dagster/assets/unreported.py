"""Archives and rows that are stored, but that no run has reported.

A run reports its partitions when a step of it is over. Killed or interrupted before that, it leaves
archives with a receipt that Dagster shows as missing, and nothing else would report them: their
slots are gone, so no further run is asked for. The same is true of rows, and of all that was stored
without Dagster.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import dagster as dg

from fuploader_dagster.assets.outcomes import receipt_metadata, rows_metadata
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.delivery.sink_notes import all_sinks
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import find_receipts


def report_unreported(
    instance: dg.DagsterInstance, pipeline: Pipeline, keys: Collection[str]
) -> int:
    """Report each of the partitions that has a receipt and was never materialised; how many."""
    names = Names.of(pipeline)
    archives = find_receipts(pipeline.layout, keys)
    stored = {names.uploaded_archive: {k: receipt_metadata(one) for k, one in archives.items()}}
    for notes in all_sinks(pipeline):
        rows = notes.receipts.find(keys)
        stored[names.sink(notes.sink)] = {key: rows_metadata(one) for key, one in rows.items()}
    return sum(_report(instance, asset, found) for asset, found in stored.items() if found)


def _report(
    instance: dg.DagsterInstance, asset: dg.AssetKey, stored: Mapping[str, Mapping[str, Any]]
) -> int:
    unreported = stored.keys() - instance.get_materialized_partitions(asset)
    for key in sorted(unreported):
        metadata = {
            **stored[key],
            "note": "stored without Dagster, or by a run that ended before it could report this",
        }
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=key, metadata=metadata)
        )
    return len(unreported)
