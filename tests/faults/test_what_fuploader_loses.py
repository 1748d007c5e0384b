"""What FUploader 1.0.5 loses, row by row: docs/operations.md names the test for each row.

Rows that are tested elsewhere are not repeated here; a test below sees that all of them exist.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.delivery import recovery
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.ship import ship, upload_partitions
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.drains import (
    assert_exactly_once,
    contents_of,
    draining,
    embedded,
    files,
    one_worker,
    publish,
    snapshot,
    wait_until_handled,
    wait_until_stored,
)
from tests.servers.swift import SwiftServer
from tests.settings import archived_files, pipeline, sealed
from tests.strategies_for_tests import names_that_lead_out, packer_that_always_fails

REPOSITORY = Path(__file__).parents[2]
ROWS = 12
YEARS_LATER = 2.0**32


def test_every_row_of_the_table_names_a_test_that_exists() -> None:
    operations = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    named = re.findall(r"^\|.*\| `(tests/[a-z_/]+\.py)::(test_\w+)` \|$", operations, re.M)
    assert len(named) == ROWS
    missing = [
        f"{path}::{name}"
        for path, name in named
        if f"\ndef {name}(" not in (REPOSITORY / path).read_text("utf-8")
    ]
    assert missing == []


def test_a_packer_that_always_fails_deletes_nothing_and_all_is_stored_once_it_is_mended(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, packer=packer_that_always_fails, max_retries=0)
    contents = [files(200, seed=seed, prefix=f"{seed}-") for seed in range(3)]
    slots = [sealed(settings, each) for each in contents]
    store = settings.store.open()
    for _ in range(3):  # a run, and what recovery asks for again
        wanted = recovery.plan(recovery.look(settings), settings, busy=[], now=YEARS_LATER)
        recovery.apply(wanted, settings)
        assert len(wanted.ask) == len(slots)
        failed = list(upload_partitions(wanted.ask, settings, store))
        assert [type(one) for one in failed] == [Failed] * len(slots)
    for slot, each in zip(slots, contents, strict=True):
        assert dict(contents_of(slot.directory)) == each
    mended = settings.model_copy(update={"packer": None})
    assert [type(one) for one in ship(mended, store)] == [Done] * len(slots)
    assert archived_files(tmp_path / "objects") == {
        name: [content] for each in contents for name, content in each.items()
    }


def test_a_store_that_was_down_gets_everything_without_a_restart(
    swift: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", swift.secret_key)
    bucket = swift.fresh_bucket()
    cloud = S3(
        bucket=bucket,
        endpoint_url=swift.endpoint,
        region=swift.region,
        access_key_id=swift.access_key,
        secret_access_key={"env": "SECRET"},
        retry_budget_seconds=0,
    )
    settings = pipeline(tmp_path, store=cloud)
    contents = files(300)
    slots = [sealed(settings, dict(list(contents.items())[part::3])) for part in range(3)]
    store = settings.store.open()
    swift.kill()
    try:
        assert [type(one) for one in ship(settings, store)] == [Failed] * len(slots)
    finally:
        swift.start()
    assert sealed_partitions(settings.layout) == [slot.seal.partition for slot in slots]
    wanted = recovery.plan(recovery.look(settings), settings, busy=[], now=YEARS_LATER)
    assert [type(one) for one in upload_partitions(wanted.ask, settings, store)] == [Done] * 3
    client = swift.client()
    for entry in client.list_objects_v2(Bucket=bucket)["Contents"]:
        client.download_file(bucket, entry["Key"], str(tmp_path / Path(entry["Key"]).name))
    assert archived_files(tmp_path) == {name: [content] for name, content in contents.items()}
    assert sealed_partitions(settings.layout) == []


def test_a_generated_name_that_leads_out_of_the_folder_is_a_dead_letter_and_writes_nothing_there(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path, file_name=names_that_lead_out)
    publish(settings, files(40))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with draining(settings):
        wait_until_handled(settings, 40)
    assert snapshot(settings).dead_letters == 40
    reasons = [letter.reason for letter in read_dead_letters(settings.layout)]
    assert len(reasons) == 40
    assert all(reason.startswith("the file name ") for reason in reasons), reasons
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(settings.storage_root) for path in new if path.suffix == ".json")
    assert not Path("/escaped.json").exists()


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_files_of_any_type_are_there_after_kill_9_and_restart(
    tmp_path: Path, slot_format: str
) -> None:
    settings = embedded(tmp_path, slot_format=slot_format, commit_messages=20)
    endings = ["", ".json", ".mp4", ".tar.zst", ".tmp", ".json.part", ".7z", ".lock", "~2.xml"]
    contents = {
        f"{number}{endings[number % len(endings)]}": b"%d " % number * (number % 50)
        for number in range(450)
    }
    first = dict(list(contents.items())[:250])
    publish(settings, first)
    with draining(settings):
        wait_until_handled(settings, 100)
        os.kill(one_worker(settings).pid, signal.SIGKILL)
        wait_until_stored(settings, first)
    publish(settings, dict(list(contents.items())[250:]))
    with draining(settings):
        wait_until_stored(settings, contents)
    assert_exactly_once(settings, contents)
