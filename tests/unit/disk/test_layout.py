"""Names on disk: partition keys that come back, and folders that never meet."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuploader_dagster.disk.layout import Layout, PartitionKey, utc

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
KEYS = st.builds(
    PartitionKey,
    sealed_at=st.integers(0, 4_000_000_000_000).map(lambda ms: utc(ms / 1000)),
    node=st.from_regex(
        r"[A-Za-z0-9_.-]{1,64}", fullmatch=True, alphabet=st.characters(codec="ascii")
    ),
    slot=st.integers(0, 10_000),
    number=st.integers(0, 10**9),
)


@given(KEYS)
def test_a_partition_key_reads_back_as_it_was_written(key: PartitionKey) -> None:
    assert PartitionKey.parse(str(key)) == key


@given(KEYS)
def test_a_partition_key_is_a_plain_file_name(key: PartitionKey) -> None:
    assert Path(str(key)).name == str(key)
    assert len(f"{key}.failure.json") < 200


@given(st.integers(0, 4_000_000_000_000), st.integers(0, 4_000_000_000_000))
def test_keys_of_one_slot_sort_by_time(one: int, two: int) -> None:
    first, second = (str(PartitionKey(utc(ms / 1000), "n", 0, 1)) for ms in sorted((one, two)))
    assert first <= second


def test_a_partition_key_looks_as_documented() -> None:
    moment = datetime(2026, 11, 20, 23, 45, 1, 123_999, tzinfo=timezone.utc)
    key = PartitionKey(utc(moment.timestamp()), "node1", 0, 17)
    assert str(key) == "20261120T234501123Z-node1-s0-000017"


@pytest.mark.parametrize(
    "node",
    ["local", "node_id-10.0.0.1", "node_id-10.0.0.1-meta-p0", "a-s1-000002", "-", "..", "Z-s"],
)
def test_a_key_can_contain_any_node_name(node: str) -> None:
    key = PartitionKey(utc(1.5), node, 3, 1_000_000)
    assert PartitionKey.parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20261120T234501123Z-n-s0-17",
        "20261120T234501123Z--s0-000017",
        "20261320T234501123Z-n-s0-000017",
        "20261120T236101123Z-n-s0-000017",
        "20261120T234501123Z-n-s0-000017\n",
        "20261120T234501123Z-n-s0-000017.tar",
        "20261120T234501123Z-../../n-s0-000017",
        "20261120T234501123Z-a b-s0-000017",
        "../20261120T234501123Z-n-s0-000017",
    ],
)
def test_other_text_is_not_a_partition_key(text: str) -> None:
    assert PartitionKey.parse(text) is None


@given(st.integers(0, 4_000_000_000_000), st.integers(0, 999))
@example(129_034, 0)
@example(1_795_000_000_001, 0)
def test_a_moment_keeps_its_milliseconds(milliseconds: int, microseconds: int) -> None:
    """However it came: as a float of seconds, through a partition key, or through both again."""
    moment = utc((milliseconds * 1000 + microseconds) / 1_000_000)
    assert moment == EPOCH + timedelta(milliseconds=milliseconds)
    assert utc(moment.timestamp()) == moment
    key = PartitionKey.parse(str(PartitionKey(moment, "n", 0, 1)))
    assert key is not None
    assert key.sealed_at == moment


def test_listings_return_numbers_and_skip_everything_else(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert layout.active_slots() == layout.active_numbers(0) == layout.sealed_dirs() == []
    for path in (
        *(layout.active(slot, 1) for slot in (10, 2, 0)),
        layout.active(0, 999_999),
        layout.active(0, 1_000_000),
        layout.sealed(2, 5),
        layout.sealed(10, 4),
        tmp_path / "active" / "slot-x",
        layout.active_slot(0) / "dir-1",
        layout.active_slot(0) / ".tmp-1-dir-000003",
        tmp_path / "sealed" / "slot-2" / ".tmp-1-dir-000006",
    ):
        path.mkdir(parents=True)
    (layout.active_slot(0) / "next-number").write_text("3")
    assert layout.active_slots() == [0, 2, 10]
    assert layout.active_numbers(0) == [1, 999_999, 1_000_000]
    assert layout.sealed_dirs() == [layout.sealed(2, 5), layout.sealed(10, 4)]
