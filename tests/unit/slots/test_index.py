"""The index: every record comes back as written, and nothing that was not written comes back."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.disk.header_text import MOST_BYTES, to_text
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.slots.index import (
    HEADER_BYTES,
    PLAIN,
    WITH_HEADERS,
    IndexEntry,
    commit,
    entries_by_commit,
    header,
    identities,
    index_of,
    names_of,
    read_index,
    record,
    record_with_headers,
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
    headers=st.just(""),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
HEADERS = st.dictionaries(TEXTS, TEXTS, max_size=3).map(to_text)
WITH = st.builds(lambda entry, headers: entry._replace(headers=headers), ENTRIES, HEADERS)
"""Entries of version 3: with headers or without."""


def commits_of(
    entries: st.SearchStrategy[IndexEntry], *, fewest: int = 0
) -> st.SearchStrategy[Any]:
    return st.lists(st.lists(entries, min_size=1, max_size=3), min_size=fewest, max_size=4)


INDEXES = st.one_of(
    st.tuples(commits_of(ENTRIES), st.just(PLAIN)),
    st.tuples(commits_of(WITH), st.just(WITH_HEADERS)),
)
FULL_INDEXES = st.one_of(
    st.tuples(commits_of(ENTRIES, fewest=1), st.just(PLAIN)),
    st.tuples(commits_of(WITH, fewest=1), st.just(WITH_HEADERS)),
)
Commits = list[list[IndexEntry]]


def written(commits: Commits, version: int = PLAIN) -> bytes:
    make = record_with_headers if version == WITH_HEADERS else record
    return header(version) + b"".join(
        commit([make(e.name.encode(), *e[1:]) for e in entries], number)
        for number, entries in enumerate(commits)
    )


def entries_of(commits: Commits) -> list[IndexEntry]:
    return [entry for entries in commits for entry in entries]


def seen_by_others(content: bytes) -> list[str]:
    return [name.decode() for name in identities(content).names]


@given(INDEXES)
def test_what_was_written_is_read(indexed: tuple[Commits, int]) -> None:
    commits, version = indexed
    content = written(commits, version)
    found = read_index(content)
    assert list(found.entries) == entries_of(commits)
    assert (found.end, found.commits, found.version) == (len(content), len(commits), version)
    assert list(entries_by_commit(content)) == commits
    assert seen_by_others(content) == [entry.name for entry in found.entries]
    for entry in found.entries:
        assert entry.name in names_of(content, entry.sha256)


@given(INDEXES)
def test_a_reader_that_comes_back_reads_on_from_a_commit(indexed: tuple[Commits, int]) -> None:
    commits, version = indexed
    content = written(commits, version)
    for count in range(len(commits) + 1):
        before = identities(content[: len(written(commits[:count], version))])
        after = identities(content[before.end :], before.version)
        assert (before.version, after.version) == (version, version)
        assert [*before.names, *after.names] == [e.name.encode() for e in entries_of(commits)]
        assert [*before.digests, *after.digests] == [e.sha256 for e in entries_of(commits)]


@given(INDEXES, st.data())
def test_a_file_cut_anywhere_gives_the_whole_commits_before_the_cut(
    indexed: tuple[Commits, int], data: st.DataObject
) -> None:
    commits, version = indexed
    content = written(commits, version)
    cut = data.draw(st.integers(0, len(content)))
    torn = content[:cut] + bytes(data.draw(st.integers(0, 200)) if cut > HEADER_BYTES else 0)
    ends = [len(written(commits[:n], version)) for n in range(len(commits) + 1)]
    whole = [n for n, end in enumerate(ends) if end <= cut]
    found = read_index(torn)
    assert list(found.entries) == (entries_of(commits[: whole[-1]]) if whole else [])
    assert found.end == (ends[whole[-1]] if whole else 0)
    assert seen_by_others(torn) == [entry.name for entry in found.entries]


@pytest.mark.parametrize("zeros", [b"", bytes(64)])
@pytest.mark.parametrize("name", ["a", "n" * 255])
def test_a_cut_at_each_byte_of_a_commit_with_headers(name: str, zeros: bytes) -> None:
    """With what a crash leaves after it: the first commit counts, never the second."""
    long = to_text({"cmd": "thumb/64", "content-type": "x" * 100})
    entries = [IndexEntry(name, 512, 1536, 7, bytes(range(32)), headers) for headers in (long, "")]
    content = written([entries, entries], WITH_HEADERS)
    end = len(written([entries], WITH_HEADERS))
    for cut in range(end, len(content)):
        found = read_index(content[:cut] + zeros)
        assert (list(found.entries), found.end, found.commits) == (entries, end, 1)
        assert seen_by_others(content[:cut] + zeros) == [name] * 2
    assert read_index(content).commits == 2


@given(FULL_INDEXES, st.data())
def test_a_changed_byte_is_damage_and_all_records_but_one_are_salvaged(
    indexed: tuple[Commits, int], data: st.DataObject
) -> None:
    """In the last commit too, though it could be called torn: it may have been acknowledged."""
    commits, version = indexed
    content = bytearray(written(commits, version))
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


@given(FULL_INDEXES, st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_records_of_either_version_are_salvaged_without_the_header(
    indexed: tuple[Commits, int], place: int, change: int
) -> None:
    commits, version = indexed
    content = bytearray(written(commits, version))
    content[place] ^= change
    assert salvage_records(bytes(content)) == entries_of(commits)
    assert salvage_records(bytes(content[HEADER_BYTES:])) == entries_of(commits)


@pytest.mark.parametrize("version", [1, 4])
def test_an_index_of_another_version_is_left_to_that_version(version: int) -> None:
    start = b"FUPINDEX" + struct.pack("<I", version)
    content = start + struct.pack("<I", zlib.crc32(start)) + record(b"a", 0, 0, 1, bytes(32))
    for read in (read_index, identities):
        with pytest.raises(DamagedSlot, match=f"has version {version}, this software reads 2 and"):
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
    assert index_of([IndexEntry("ü", 1024, 512, 77, sha256)]) == whole_index([one])
    assert whole_index([]) == header()


def test_the_format_with_headers_is_the_documented_one() -> None:
    sha256, headers = bytes(range(32)), '{"cmd":"größe"}'
    raw = headers.encode()
    rest = struct.pack("<HHQQ32sH", 2, 1536, 1024, 77, sha256, 17) + "ü".encode() + raw
    one = record_with_headers("ü".encode(), 1024, 1536, 77, sha256, headers)
    assert one == struct.pack("<I", zlib.crc32(rest)) + rest
    assert header(WITH_HEADERS)[:12] == b"FUPINDEX\x03\0\0\0"
    without = record_with_headers(b"a", 0, 0, 0, sha256)
    assert without[56:] == b"\0\0a"
    entries = [IndexEntry("ü", 1024, 1536, 77, sha256, headers), IndexEntry("a", 0, 0, 0, sha256)]
    assert index_of(entries) == header(WITH_HEADERS) + commit([one, without], 0)


def test_the_longest_headers_fit_and_a_plain_index_refuses_any() -> None:
    headers = to_text({"h": "x" * (MOST_BYTES - 8)})
    assert len(headers) == MOST_BYTES
    entry = IndexEntry("n" * 255, 2**64 - 1, 2**16 - 1, 2**64 - 1, bytes(32), headers)
    assert list(read_index(index_of([entry])).entries) == [entry]
    with pytest.raises(ValueError, match="no room for message headers"):
        record(b"a", 0, 0, 0, bytes(32), headers)
