"""The ship job: processes and packs sealed slots, uploads their archives, stores their rows."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import dagster as dg

from fuploader_dagster.assets.partitions import SHIP_TAG, Names, made_assets
from fuploader_dagster.settings.pipeline import Pipeline

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition,
    )


def build_ship_job(pipeline: Pipeline) -> UnresolvedAssetJobDefinition:
    """The job that the drain sensor and the recovery schedule launch.

    The check `store_reachable` costs no run, so it is left out; it must be among the definitions.
    """
    names = Names.of(pipeline)
    # Known, and meant: only backfills look at these policies, and those of a sink are its own.
    warnings.filterwarnings("ignore", f"Asset job {names.ship_job} materializes assets with vary")
    return dg.define_asset_job(
        names.ship_job,
        selection=made_assets(pipeline) - dg.AssetSelection.checks(names.reachable_check),
        tags={SHIP_TAG: names.scope},
        executor_def=dg.in_process_executor,
        description="Packs sealed slots, uploads their archives and stores their rows.",
    )
