"""Partitions: names that carry the node, and ranges that a run can be asked for."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.assets.partitions import (
    PARTITION_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
    Names,
    chunks,
    contiguous_ranges,
    keys_of_run,
    node_in_names,
    run_request,
)
from fuploader_dagster.errors import ConfigError
from tests.settings import intake

ALL = [f"k{n:02d}" for n in range(8)]
SETS = st.lists(st.sampled_from([f"k{n}" for n in range(40)]), unique=True)


@given(SETS, st.sets(st.sampled_from([f"k{n}" for n in range(50)])), st.integers(1, 10))
def test_ranges_hold_each_wanted_key_of_the_set_once_and_nothing_else(
    all_keys: list[str], wanted: set[str], size: int
) -> None:
    ranges = [list(one) for one in contiguous_ranges(sorted(wanted), all_keys, size)]
    assert [key for one in ranges for key in one] == [key for key in all_keys if key in wanted]
    for one in ranges:
        assert 1 <= len(one) <= size
        start = all_keys.index(one[0])
        assert all_keys[start : start + len(one)] == one


@given(SETS, st.sets(st.sampled_from([f"k{n}" for n in range(50)])), st.integers(1, 10))
def test_a_run_handles_just_the_keys_it_was_asked_for(
    all_keys: list[str], wanted: set[str], size: int
) -> None:
    names = Names("docs", None)
    for keys in contiguous_ranges(sorted(wanted), all_keys, size):
        request = run_request(names, keys, run_key="r")
        assert list(keys_of_run(request.tags, all_keys)) == list(keys)


@pytest.mark.parametrize(
    ("wanted", "size", "ranges"),
    [
        ([], 3, []),
        (["k99"], 3, []),
        (ALL[:3], 3, [ALL[:3]]),
        (ALL[:4], 3, [ALL[:3], ALL[3:4]]),
        ([ALL[0], ALL[2], ALL[3], ALL[7]], 3, [[ALL[0]], ALL[2:4], [ALL[7]]]),
        (ALL, 1, [[key] for key in ALL]),
        (ALL, 64, [ALL]),
        (ALL[::-1], 64, [ALL]),
        ([ALL[1], ALL[1]], 64, [[ALL[1]]]),
    ],
)
def test_ranges_break_at_gaps_and_at_the_size(
    wanted: list[str], size: int, ranges: list[list[str]]
) -> None:
    assert [list(one) for one in contiguous_ranges(wanted, ALL, size)] == ranges


@pytest.mark.parametrize(
    ("tags", "keys"),
    [
        ({}, []),
        ({PARTITION_TAG: "k02"}, ["k02"]),
        ({PARTITION_TAG: "gone"}, ["gone"]),
        ({RANGE_START_TAG: "k01", RANGE_END_TAG: "k03"}, ["k01", "k02", "k03"]),
        ({RANGE_START_TAG: "k01", RANGE_END_TAG: "k01"}, ["k01"]),
        ({RANGE_START_TAG: "k03", RANGE_END_TAG: "k01"}, []),
        ({RANGE_START_TAG: "k01"}, []),
        ({RANGE_START_TAG: "gone", RANGE_END_TAG: "k03"}, []),
    ],
)
def test_a_runs_keys_are_read_from_its_tags(tags: dict[str, str], keys: list[str]) -> None:
    assert list(keys_of_run(tags, ALL)) == keys


@given(st.lists(st.text(max_size=2)), st.integers(1, 7))
def test_chunks_are_the_keys_in_order_and_only_the_last_is_short(
    keys: list[str], size: int
) -> None:
    cut = [list(one) for one in chunks(keys, size)]
    assert [key for one in cut for key in one] == keys
    assert all(len(one) == size for one in cut[:-1])
    assert all(1 <= len(one) <= size for one in cut)


def test_names_carry_the_node_where_one_is_set(tmp_path: Path) -> None:
    alone = Names.of(intake(tmp_path))
    one = Names.of(intake(tmp_path, node_id="node_id-10.0.0.1"))
    other = Names.of(intake(tmp_path, node_id="node_id-10.0.0.2"))
    assert alone.packed_archive.path == ["docs", "packed_archive"]
    assert one.packed_archive.path == ["docs", "node_id_10_0_0_1_xudppp", "packed_archive"]
    for attribute in ("scope", "partition_set", "ship_job", "seal_job", "store", "queue"):
        assert len({getattr(names, attribute) for names in (alone, one, other)}) == 3


def test_two_node_ids_never_give_one_name() -> None:
    ids = ["".join(one) for size in range(1, 6) for one in itertools.product("1_-.", repeat=size)]
    ids = [node_id for node_id in ids if "..." not in node_id]  # which is refused
    names = {node_id: node_in_names(node_id) for node_id in ids}
    assert len(set(names.values())) == len(ids)
    for node_id, name in names.items():
        assert re.fullmatch(r"[A-Za-z0-9_]+", name)
        if name != node_id:
            with pytest.raises(ConfigError, match="looks like the name in Dagster of a node"):
                node_in_names(name)


@pytest.mark.parametrize(
    ("node_id", "name"),
    [
        ("node1", "node1"),
        ("Node_1", "Node_1"),
        ("a__1_", "a__1_"),
        ("a_xd", "a_xd"),
        ("a_1_xu", "a_1_xu"),
        ("a_1_xdd", "a_1_xdd"),
        ("a-1", "a_1_xd"),
        ("a.1", "a_1_xp"),
        ("-", "__xd"),
        ("ip-10-0-0-1.eu_west", "ip_10_0_0_1_eu_west_xddddpu"),
    ],
)
def test_an_id_of_letters_digits_and_underscores_is_its_own_name_and_others_are_marked(
    node_id: str, name: str
) -> None:
    assert node_in_names(node_id) == name


def test_an_id_that_is_another_ones_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'node_1_xd' looks like the name in Dagster of a node"):
        Names.of(intake(tmp_path, node_id="node_1_xd"))
