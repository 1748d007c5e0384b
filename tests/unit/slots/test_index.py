"""The index: every record comes back as written, and nothing that was not written comes back."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.slots.index import (
    HEADER_BYTES,
    IndexEntry,
    commit,
    header,
    identities,
    names_of,
    read_index,
    record,
    salvage_records,
    whole_index,
)

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
"""No file can have a NUL in its name (`check_file_name`), so no commit ends with a zero."""
NAMES = st.text(CHARACTERS, min_size=1, max_size=80).filter(lambda name: len(name.encode()) <= 255)
ENTRIES = st.builds(
    IndexEntry,
    name=NAMES,
    offset=st.integers(0, 2**64 - 1),
    header_bytes=st.integers(0, 2**16 - 1),
    size_bytes=st.integers(0, 2**64 - 1),
    sha256=st.binary(min_size=32, max_size=32),
)


COMMITS = st.lists(st.lists(ENTRIES, min_size=1, max_size=3), max_size=4)
Commits = list[list[IndexEntry]]


def written(commits: Commits) -> bytes:
    return header() + b"".join(
        commit([record(e.name.encode(), *e[1:]) for e in entries], number)
        for number, entries in enumerate(commits)
    )


def entries_of(commits: Commits) -> list[IndexEntry]:
    return [entry for entries in commits for entry in entries]


def seen_by_others(content: bytes) -> list[str]:
    return [name.decode() for name in identities(content, at_start=True).names]


@given(COMMITS)
def test_what_was_written_is_read(commits: Commits) -> None:
    content = written(commits)
    found = read_index(content)
    assert list(found.entries) == entries_of(commits)
    assert (found.end, found.commits) == (len(content), len(commits))
    assert seen_by_others(content) == [entry.name for entry in found.entries]
    for entry in found.entries:
        assert entry.name in names_of(content, entry.sha256)


@given(COMMITS, st.data())
def test_a_file_cut_anywhere_gives_the_whole_commits_before_the_cut(
    commits: Commits, data: st.DataObject
) -> None:
    content = written(commits)
    cut = data.draw(st.integers(0, len(content)))
    torn = content[:cut] + bytes(data.draw(st.integers(0, 200)) if cut > HEADER_BYTES else 0)
    ends = [len(written(commits[:n])) for n in range(len(commits) + 1)]
    whole = [n for n, end in enumerate(ends) if end <= cut]
    found = read_index(torn)
    assert list(found.entries) == (entries_of(commits[: whole[-1]]) if whole else [])
    assert found.end == (ends[whole[-1]] if whole else 0)
    assert seen_by_others(torn) == [entry.name for entry in found.entries]


@given(st.lists(st.lists(ENTRIES, min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_a_changed_byte_is_damage_and_all_records_but_one_are_salvaged(
    commits: Commits, data: st.DataObject
) -> None:
    """In the last commit too, though it could be called torn: it may have been acknowledged."""
    content = bytearray(written(commits))
    place = data.draw(st.integers(HEADER_BYTES, len(content) - 1))
    before = content[place]
    content[place] = data.draw(st.integers(1, 255).filter(lambda value: value != before))
    with pytest.raises(DamagedSlot, match="was committed there does not read back"):
        read_index(bytes(content))
    wanted = entries_of(commits)
    found = salvage_records(bytes(content))
    assert len(found) >= len(wanted) - 1
    assert [entry for entry in found if entry not in wanted] == []
    assert not set(seen_by_others(bytes(content))) - {entry.name for entry in wanted}


def test_blocks_that_were_never_written_are_a_torn_commit_unless_a_whole_one_follows() -> None:
    first, second = ([IndexEntry(f"{n}.json", 0, 0, 7, bytes([n + 1] * 32))] * 9 for n in range(2))
    content, end = written([first, second]), len(written([first]))
    for start in range(end, len(content) - 64):
        torn = content[:start] + bytes(64) + content[start + 64 :]
        assert read_index(torn).end == end
    with pytest.raises(DamagedSlot):
        read_index(content[:100] + bytes(64) + content[164:])


def test_a_commit_that_is_missing_is_damage() -> None:
    entry = IndexEntry("a", 0, 0, 1, bytes(range(32)))
    first, second = ([record(b"a", *entry[1:])] for _ in range(2))
    with pytest.raises(DamagedSlot, match="damaged after 0 messages"):
        read_index(header() + commit(second, 1))
    with pytest.raises(DamagedSlot, match="damaged after 1 messages"):
        read_index(header() + commit(first, 0) + commit(second, 0))


@pytest.mark.parametrize("place", range(HEADER_BYTES))
def test_a_header_that_is_not_ours_is_damage_and_no_torn_tail(place: int) -> None:
    content = bytearray(header())
    content[place] ^= 1
    with pytest.raises(DamagedSlot):
        read_index(bytes(content))


@pytest.mark.parametrize("version", [1, 3])
def test_an_index_of_another_version_is_left_to_that_version(version: int) -> None:
    start = b"FUPINDEX" + struct.pack("<I", version)
    content = start + struct.pack("<I", zlib.crc32(start)) + record(b"a", 0, 0, 1, bytes(32))
    for read in (read_index, lambda content: identities(content, at_start=True)):
        with pytest.raises(DamagedSlot, match=f"has version {version}, this software reads 2"):
            read(content)
    assert salvage_records(content) == []


def test_the_format_is_the_documented_one() -> None:
    sha256 = bytes(range(32))
    rest = struct.pack("<HHQQ32s", 2, 512, 1024, 77, sha256) + "ü".encode()
    one = record("ü".encode(), 1024, 512, 77, sha256)
    assert one == struct.pack("<I", zlib.crc32(rest)) + rest
    fields = struct.pack("<IIII", 5, 2, 2 * len(one), zlib.crc32(one + one))
    assert commit([one, one], 5) == (
        b"FUPC" + struct.pack("<I", zlib.crc32(fields)) + fields + one + one
    )
    assert header()[:12] == b"FUPINDEX\x02\0\0\0"
    assert whole_index([one]) == header() + commit([one], 0)
    assert whole_index([]) == header()
