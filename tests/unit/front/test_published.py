"""Ids of messages that went into the queue: written by several processes, found again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fuploader_dagster.errors import ForeignFile
from fuploader_dagster.front.published import Published

WRITER = """
import sys
from pathlib import Path
from fuploader_dagster.front.published import Published

published = Published(Path(sys.argv[1]), 500)
for number in range(100):
    published.note(f"{sys.argv[2]}-{number}-{one}" for one in range(7))
"""


def test_an_id_is_known_once_it_was_noted(tmp_path: Path) -> None:
    published = Published(tmp_path / "docs" / "published", 10)
    assert "a" not in published
    published.note(["a", "消息 1.json", "\udcff"])
    again = Published(tmp_path / "docs" / "published", 10)
    assert all(one in again for one in ("a", "消息 1.json", "\udcff"))
    assert "b" not in again


def test_the_last_ones_are_remembered_and_the_files_do_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "published"
    published = Published(path, 100)
    for start in range(0, 2_000, 8):
        published.note(str(number) for number in range(start, start + 8))
        first = max(0, start + 8 - 100)
        assert all(str(number) in published for number in range(first, start + 8))
        assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 2 * 16 * (100 + 8)
    assert "0" not in published


def test_several_processes_lose_nothing_that_should_be_remembered(tmp_path: Path) -> None:
    """Each finds the file full at times, and one begins another."""
    path = tmp_path / "published"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    sizes = {one.name: one.stat().st_size for one in tmp_path.iterdir()}
    assert set(sizes) <= {"published", "published-before"}
    assert 500 <= sizes["published-before"] // 16 <= 500 + 3 * 7
    total = sum(sizes.values()) // 16
    known = Published(path, 500)
    found = sum(
        f"{name}-{n}-{one}" in known for name in "abc" for n in range(100) for one in range(7)
    )
    assert found == total


def test_a_write_that_was_cut_off_costs_no_other_id(tmp_path: Path) -> None:
    path = tmp_path / "published"
    published = Published(path, 10)
    published.note(["a"])
    path.write_bytes(path.read_bytes() + b"torn")
    published.note(["b"])
    assert "a" in published
    assert "b" in published


def test_an_id_that_two_reads_have_between_them_is_found(tmp_path: Path) -> None:
    path = tmp_path / "published"
    published = Published(path, 10**9)
    published.note(["a"])
    digest = path.read_bytes()
    for before in range((1 << 20) - 17, (1 << 20) + 1):
        path.write_bytes(b"\0" * before + digest)
        assert "a" in published


def test_something_else_in_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "published").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ForeignFile, match="is a link"):
        Published(tmp_path / "published", 10).note(["a"])
