"""How archives are cut into parts: a table, and what holds for every size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.resources.object_stores.archive_bytes import cut

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 1), (1, 1), (16 * MIB, 1), (32 * MIB - 1, 1), (32 * MIB, 2), (GIB, 64), (5 * TIB, 10_000)],
)
def test_an_archive_below_two_parts_goes_in_one_request(size: int, count: int) -> None:
    assert len(cut(size, 16 * MIB, 10_000)) == count


@given(size=st.integers(0, 5 * TIB), wanted=st.sampled_from([5 * MIB, 16 * MIB, GIB]))
def test_parts_cover_the_archive_and_keep_the_services_limits(size: int, wanted: int) -> None:
    parts = cut(size, wanted, 10_000)
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert sum(part.size_bytes for part in parts) == size
    assert all(part.offset == (part.number - 1) * parts[0].size_bytes for part in parts)
    assert len(parts) <= 10_000
    if len(parts) > 1:
        assert all(part.size_bytes >= wanted for part in parts[:-1])
        assert parts[0].size_bytes <= 5 * GIB
        # The last part shows for which archive an upload was begun, so it must not be tiny.
        assert parts[0].size_bytes - parts[-1].size_bytes < len(parts)
