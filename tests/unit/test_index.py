"""The index: every record comes back as written, and nothing that was not written comes back."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.index import HEADER_BYTES, IndexEntry, header, read_index, record

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(
    lambda name: len(name.encode()) <= 255
)
ENTRIES = st.builds(
    IndexEntry,
    name=NAMES,
    offset=st.integers(0, 2**64 - 1),
    header_bytes=st.integers(0, 2**16 - 1),
    size_bytes=st.integers(0, 2**64 - 1),
    sha256=st.binary(min_size=32, max_size=32),
)


def written(entries: list[IndexEntry]) -> bytes:
    return header() + b"".join(record(e.name.encode(), *e[1:]) for e in entries)


@given(st.lists(ENTRIES, max_size=5))
def test_what_was_written_is_read(entries: list[IndexEntry]) -> None:
    content = written(entries)
    found = read_index(content)
    assert list(found.entries) == entries
    assert found.end == len(content)


@given(st.lists(ENTRIES, max_size=3), st.data())
def test_a_file_cut_anywhere_gives_the_records_before_the_cut(
    entries: list[IndexEntry], data: st.DataObject
) -> None:
    content = written(entries)
    cut = data.draw(st.integers(0, len(content)))
    found = read_index(content[:cut])
    ends = [len(written(entries[:n])) for n in range(len(entries) + 1)]
    whole = [n for n, end in enumerate(ends) if end <= cut]
    assert list(found.entries) == (entries[: whole[-1]] if whole else [])
    assert found.end == (ends[whole[-1]] if whole else 0)


@given(st.lists(ENTRIES, min_size=1, max_size=3), st.data())
def test_a_changed_byte_never_gives_a_record_that_was_not_written(
    entries: list[IndexEntry], data: st.DataObject
) -> None:
    content = bytearray(written(entries))
    place = data.draw(st.integers(HEADER_BYTES, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    found = read_index(bytes(content))
    assert list(found.entries) == entries[: len(found.entries)]
    assert len(found.entries) < len(entries)


@given(st.lists(ENTRIES, max_size=3), st.integers(1, 200))
def test_zeros_behind_the_last_record_are_cut_off(entries: list[IndexEntry], zeros: int) -> None:
    content = written(entries)
    assert read_index(content + bytes(zeros)).end == len(content)


@pytest.mark.parametrize("place", range(HEADER_BYTES))
def test_a_header_that_is_not_ours_is_damage_and_no_torn_tail(place: int) -> None:
    content = bytearray(header())
    content[place] ^= 1
    with pytest.raises(DamagedSlot):
        read_index(bytes(content))


def test_an_index_of_a_later_version_is_left_to_that_version() -> None:
    start = b"FUPINDEX" + struct.pack("<I", 2)
    with pytest.raises(DamagedSlot, match="has version 2, this software reads 1"):
        read_index(start + struct.pack("<I", zlib.crc32(start)))


def test_the_format_is_the_documented_one() -> None:
    sha256 = bytes(range(32))
    rest = struct.pack("<HHQQ32s", 2, 512, 1024, 77, sha256) + "ü".encode()
    assert record("ü".encode(), 1024, 512, 77, sha256) == struct.pack("<I", zlib.crc32(rest)) + rest
    assert header()[:12] == b"FUPINDEX\x01\0\0\0"
