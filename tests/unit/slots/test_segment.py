"""Messages that are read back from a segment: whole ones, and all kinds of damage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.disk.tar_headers import member_header, padding
from fuploader_dagster.slots.index import IndexEntry
from fuploader_dagster.slots.segment import content_of

SMALL, LARGE = 1000, 2**20 + 1
"""Read in one go, and in pieces."""
LENGTHS = [0, 1, 511, 512, SMALL, 2**20 - 1024, 2**20 - 512, 2**20 - 511, 2**20, LARGE]
HEADERS = ["", to_text({"content-type": "text/plain"})]


@contextmanager
def segment(tmp_path: Path, size: int, headers: str = "") -> Iterator[tuple[int, IndexEntry, int]]:
    """A segment with one message behind another one, its record, and the length of its member."""
    content = os.urandom(size)
    head = member_header("a.json", size, headers)
    member = head + content + padding(size)
    path = tmp_path / "segment.tar"
    path.write_bytes(bytes(1024) + member)
    entry = IndexEntry("a.json", 1024, len(head), size, hashlib.sha256(content).digest(), headers)
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor, entry, len(member)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("headers", HEADERS)
@pytest.mark.parametrize("size", LENGTHS)
def test_a_whole_message_is_read_back(tmp_path: Path, size: int, headers: str) -> None:
    with segment(tmp_path, size, headers) as (descriptor, entry, _):
        content = content_of(descriptor, entry)
        assert content is not None
        assert hashlib.sha256(content).digest() == entry.sha256


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_changed_byte_anywhere_is_noticed(tmp_path: Path, size: int) -> None:
    with segment(tmp_path, size) as (descriptor, entry, length):
        places = {0, 99, 511, 512, 512 + size // 2, 512 + size - 1, 512 + size, length - 1}
        for place in places:
            (byte,) = os.pread(descriptor, 1, entry.offset + place)
            os.pwrite(descriptor, bytes([byte ^ 1]), entry.offset + place)
            assert content_of(descriptor, entry) is None, place
            os.pwrite(descriptor, bytes([byte]), entry.offset + place)
        assert content_of(descriptor, entry) is not None


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_message_that_is_cut_short_is_noticed(tmp_path: Path, size: int) -> None:
    with segment(tmp_path, size) as (descriptor, entry, length):
        for missing in (1, 24, length - 512, length):
            os.ftruncate(descriptor, entry.offset + length - missing)
            assert content_of(descriptor, entry) is None, missing


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "b.json"},
        {"headers": HEADERS[1]},
        {"header_bytes": 0},
        {"header_bytes": 1024},
        {"offset": 0},
        {"offset": 1025},
        {"offset": 2**40},
        {"offset": 2**63},
        {"offset": 2**64 - 1},
        {"size_bytes": 0},
        {"size_bytes": 2**20},
        {"size_bytes": 2**40},
        {"size_bytes": 2**64 - 1},
        {"sha256": bytes(32)},
    ],
    ids=str,
)
def test_a_record_that_lies_gets_nothing(
    tmp_path: Path, size: int, wrong: dict[str, object]
) -> None:
    """Neither another content, nor memory for what the file does not have."""
    with segment(tmp_path, size) as (descriptor, entry, _):
        assert content_of(descriptor, entry._replace(**wrong)) is None  # type: ignore[arg-type]
