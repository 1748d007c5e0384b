"""Receipts and failures: what is noted about a slot, whatever a crash does to the note."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.failures import (
    MAX_ERROR_CHARACTERS,
    Failure,
    all_failures,
    clear_failure,
    due_at,
    find_failure,
    note_failure,
)
from fuploader_dagster.disk.layout import Layout, PartitionKey, utc
from fuploader_dagster.slots.receipts import Receipt, find_receipt, find_receipts, keep_receipt

HOUR = 3600
KEYS = [str(PartitionKey(utc(n * HOUR / 2), "n", 0, n + 1)) for n in range(6)]


def receipt(partition: str, **values: Any) -> Receipt:
    return Receipt(
        **{
            "partition": partition,
            "address": f"s3://b/{partition}",
            "key": "k",
            "size_bytes": 1,
            "sha256": "00",
            "messages": 2,
            "payload_bytes": 3,
            "stored_at": "2026-11-21T12:00:00.000+00:00",
            **values,
        }
    )


def test_a_receipt_is_found_by_its_partition_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert find_receipt(layout, KEYS[0]) is None
    for key in KEYS[:4]:
        keep_receipt(layout, receipt(key))
    assert [find_receipt(layout, key) for key in KEYS[:4]] == [receipt(key) for key in KEYS[:4]]
    assert find_receipt(layout, KEYS[5]) is None
    assert find_receipts(layout, KEYS) == {key: receipt(key) for key in KEYS[:4]}
    assert sorted(path.name for path in layout.receipts.iterdir()) == [
        "19700101T00.jsonl",
        "19700101T01.jsonl",
    ]


def test_a_partition_that_another_receipt_mentions_has_none(tmp_path: Path) -> None:
    keep_receipt(Layout(tmp_path), receipt(KEYS[0], address=f'x"{KEYS[1]}"', key=KEYS[1]))
    assert find_receipt(Layout(tmp_path), KEYS[1]) is None


def test_a_receipt_torn_at_any_byte_is_none_and_spoils_no_other(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    keep_receipt(layout, receipt(KEYS[0]))
    (path,) = layout.receipts.iterdir()
    first = path.read_bytes()
    keep_receipt(layout, receipt(KEYS[1]))
    second = path.read_bytes()[len(first) :]
    for cut in range(len(second) - 1):
        path.write_bytes(first + second[:cut])
        assert find_receipts(layout, KEYS) == {KEYS[0]: receipt(KEYS[0])}
        keep_receipt(layout, receipt(KEYS[1], size_bytes=9))
        assert find_receipt(layout, KEYS[0]) == receipt(KEYS[0])
        assert find_receipt(layout, KEYS[1]) == receipt(KEYS[1], size_bytes=9)


def test_receipts_that_many_threads_keep_at_once_are_all_there(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    keys = [str(PartitionKey(utc(0), "n", 0, n)) for n in range(200)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: keep_receipt(layout, receipt(key)), keys))
    assert find_receipts(layout, keys) == {key: receipt(key) for key in keys}


def test_failures_are_counted_until_the_slot_gets_through(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert find_failure(layout, KEYS[0]) is None
    assert list(all_failures(layout)) == []
    note_failure(layout, KEYS[0], stage="pack", error="disk", now=1.0)
    second = note_failure(layout, KEYS[0], stage="upload", error="no \n route", now=2.0)
    assert second == Failure(
        partition=KEYS[0], stage="upload", attempts=2, failed_at=2.0, error="no \n route"
    )
    other = note_failure(layout, KEYS[1], stage="pack", error="x" * 10_000, now=3.0)
    assert len(other.error) == MAX_ERROR_CHARACTERS
    assert list(all_failures(layout)) == [second, other]
    clear_failure(layout, KEYS[0])
    clear_failure(layout, KEYS[0])
    assert list(all_failures(layout)) == [other]


def test_a_failure_that_cannot_be_read_costs_the_count_only(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    note_failure(layout, KEYS[0], stage="pack", error="e", now=1.0)
    (path,) = layout.archives.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    assert list(all_failures(layout)) == []
    assert note_failure(layout, KEYS[0], stage="pack", error="e", now=1.0).attempts == 1


@pytest.mark.parametrize(
    ("attempts", "pause"), [(1, 60), (2, 120), (3, 240), (6, 1920), (7, 3600), (5000, 3600)]
)
def test_the_pause_doubles_up_to_the_cap(attempts: int, pause: float) -> None:
    limits = {"base_seconds": 60.0, "cap_seconds": 3600.0}
    assert due_at(attempts, 100.0, **limits, now=101.0) == 100 + pause
    assert due_at(attempts, 100.0, **limits, now=99.0) == 99, "the clock went back"
