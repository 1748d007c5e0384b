"""How much memory one large member takes, in each format: at most so many copies of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuploader_dagster.archives.parquet_frames import ParquetFrames
from fuploader_dagster.errors import PermanentError
from fuploader_dagster.slots.index import IndexEntry
from tests.settings import pipeline, sealed

SIZE = 48 << 20
KINDS = {
    "json": lambda: b'{"a": "' + b"x" * SIZE + b'"}',
    "bytes": lambda: os.urandom(SIZE),
}
COPIES = {
    ("zip", "json"): (0.7, 0.7),
    ("zip", "bytes"): (1.3, 1.0),
    ("jsonl.zst", "json"): (3.5, 1.5),
    ("jsonl.zst", "bytes"): (4.2, 2.9),
    ("parquet", "json"): (11.0, 3.9),
    ("parquet", "bytes"): (7.0, 4.8),
}
"""While it is packed, and while it is read."""


@pytest.mark.parametrize(("archive_format", "kind"), COPIES)
def test_a_large_member_is_in_memory_at_most_some_times(
    tmp_path: Path, archive_format: str, kind: str
) -> None:
    partition = sealed(
        pipeline(tmp_path, archive_format=archive_format), {"large": KINDS[kind]()}
    ).seal.partition
    for what, most in zip(("pack", "read"), COPIES[archive_format, kind], strict=True):
        program = [sys.executable, "-m", "tests.unit.archives.large_member"]
        done = subprocess.run(
            [*program, str(tmp_path), archive_format, partition, what],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        assert int(done.stdout) / SIZE <= most, what


def test_a_member_that_no_value_of_parquet_can_hold_is_refused_with_a_sentence() -> None:
    frames = ParquetFrames(3, {}, (), found=True, content=True)
    member = IndexEntry("huge.bin", 0, 512, 2**31, bytes(32))
    with pytest.raises(PermanentError, match=r"'huge.bin' has 2,147,483,648 bytes") as refused:
        list(frames.encode_large(member, iter(())))
    assert "segment.tar" in refused.value.hint
