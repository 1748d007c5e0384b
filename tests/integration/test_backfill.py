"""A backfill of chosen partitions, launched as the UI launches it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.servers.dagster_dev import DagsterDev
from tests.settings import archived_files, embedded_parts, pipeline, sealed

LAUNCH = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
STATUS = """
query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status } } }
"""


@pytest.mark.timeout(300)
def test_a_backfill_of_chosen_partitions_ships_just_these(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    settings = pipeline(folder, name="docs")
    slots = [sealed(settings, {f"{n}.json": b"%d" % n}) for n in range(4)]
    keys = [slot.seal.partition for slot in slots]
    chosen = keys[1:3]
    configuration = {
        "storage_root": "data",
        "pipelines": {
            "docs": {
                **embedded_parts(),
                "recovery_base_seconds": 3600,
                "drain_by": "command",
            }
        },
    }
    dev = DagsterDev(folder, configuration, {})
    dev.start()
    try:
        for key in keys:
            add_partition(dev, key)
        backfill(dev, ["packed_archive", "uploaded_archive"], chosen)
        assert sorted(dev.materialized("docs", "uploaded_archive")) == chosen
        assert len(dev.runs()) == 1
    finally:
        dev.stop()
    assert archived_files(folder / "objects") == {"1.json": [b"1"], "2.json": [b"2"]}


def backfill(
    dev: DagsterDev, assets: Sequence[str], partitions: Sequence[str], **tags: str
) -> None:
    """Launch a backfill of these assets of `docs`, and wait until it has succeeded."""
    params = {
        "assetSelection": [{"path": ["docs", asset]} for asset in assets],
        "partitionNames": partitions,
        "tags": [{"key": f"fuploader/{name}", "value": value} for name, value in tags.items()],
    }
    launched = dev.query(LAUNCH, params=params)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    dev.wait_for(
        lambda: backfill_status(dev, launched["backfillId"]).startswith("COMPLETED"),
        "the backfill",
    )
    assert backfill_status(dev, launched["backfillId"]) == "COMPLETED_SUCCESS"


def add_partition(dev: DagsterDev, key: str) -> None:
    """Add a partition as the UI's dialog does."""
    answer = dev.query(
        "mutation($selector: RepositorySelector!, $set: String!, $key: String!) {"
        " addDynamicPartition(repositorySelector: $selector, partitionsDefName: $set,"
        " partitionKey: $key) { __typename } }",
        selector={"repositoryLocationName": "fuploader", "repositoryName": "__repository__"},
        set="docs_slots",
        key=key,
    )
    assert answer["addDynamicPartition"]["__typename"] == "AddDynamicPartitionSuccess"


def backfill_status(dev: DagsterDev, backfill_id: str) -> str:
    """The status of a backfill, as the UI shows it."""
    status: str = dev.query(STATUS, id=backfill_id)["partitionBackfillOrError"]["status"]
    return status
