"""Some thousand inputs at each test run, what longer runs found, and that a run can fail."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from fuploader_dagster.disk.tar_headers import member_header
from fuploader_dagster.slots import index
from tests.fuzz.__main__ import in_a_process, portions
from tests.fuzz.archive_targets import ArchiveTarget
from tests.fuzz.run import fuzz, put, target_of
from tests.fuzz.slot_targets import SealTarget
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
INPUTS = 1_600
FEW_INPUTS = 320
SLOW = (
    *("archive", "archive-jsonl", "archive-zip", "archive-parquet", "config", "segment"),
    *("former-names", "former-archive", "former-notes"),
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is passed over is logged, each time."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_a_mutated_input_is_accepted_or_refused_by_an_error_of_ours(name: str) -> None:
    """A few of the million that `make fuzz` puts to each reader; some get through, some do not."""
    _, found = in_a_process((name, FEW_INPUTS if name in SLOW else INPUTS, 20261121))
    assert found is not None, "stderr has the input, or the memory that it took"
    assert found["accepted"] > 0
    assert found["refused"] > 0


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_not_mutated_is_accepted(name: str) -> None:
    """Else nothing of what is behind the first check would ever be reached."""
    with target_of(name) as target:
        assert [put(target, data) for data in target.valid] == ["accepted"] * len(target.valid)


def _index(
    name: bytes, offset: int, header_bytes: int, size_bytes: int, digest: bytes = bytes(32)
) -> bytes:
    record = index.record(name, offset, header_bytes, size_bytes, digest)
    return index.whole_index([record]) + b"--data--"


_SEAL = (
    b'{"version":1,"partition":"19700101T000001000Z-local-s0-000001","pipeline":"docs",'
    b'"node":"local","slot":%s,"number":%s,"sealed_at":"","reason":"age","messages":1,'
    b'"slot_format":"segment","payload_bytes":2,"index_sha256":"","archive":"a","object_key":"%s"}'
)
FOUND = {
    "a size beyond any memory": ("segment", _index(b"a", 0, 512, 2**62) + b"tar"),
    "an offset beyond any file": ("segment", _index(b"a", 2**64 - 1, 512, 1) + b"tar"),
    "a name longer than any file's": ("segment", _index(b"n" * 300, 0, 0, 0)),
    "a name with a NUL": ("segment", _index(b"a\0b", 0, 0, 0)),
    "a name with a NUL, of a file that is there": (
        "segment",
        _index(b"a\0b", 0, 0, 0, sha256(b"").digest()),
    ),
    "a seal that is no UTF-8": ("seal", _SEAL % (b"0", b"1", b"\xff")),
    "a seal of another directory": ("seal", _SEAL % (b"0", b"2", b"k")),
    "a seal of another slot": ("seal", _SEAL % (b"7", b"1", b"k")),
    "a seal without end": ("seal", b'{"more":' + b"[" * 100_000),
    "a record that is no UTF-8": ("records", b'{"partition":"\xff"}'),
    "a record without end": ("records", b'{"more":' + b"[" * 100_000),
    "a partition of thousands of digits": (
        "records",
        b'{"partition":"20261121T030405678Z-local-s%s-000001","address":"","key":"","sha256":"",'
        b'"size_bytes":1,"messages":1,"payload_bytes":1,"stored_at":""}' % (b"9" * 5000),
    ),
    "a slot of thousands of digits": (
        "former-keys",
        b"lt:meta:n:queue:ready\0" + b"9" * 5000 + b":slot_1_3",
    ),
    "a date that there is not": ("config", b"pipelines: 2026-13-45"),
    "a number of no digits": ("config", b"pipelines: 0b_"),
    "a number of too many digits": ("config", b"pipelines: " + b"1" * 5000),
    "a truth of its own": ("config", b"pipelines: !!bool x"),
    "a time that is none": ("config", b"pipelines: !!timestamp x"),
    "an empty integer": ("config", b"pipelines: !!int ''"),
    "brackets without end": ("config", b"[" * 600),
}
"""What made a reader raise something else, run out of memory, or believe it, at some time."""


@pytest.mark.parametrize("what", FOUND)
def test_what_fuzzing_found_is_refused(what: str) -> None:
    name, data = FOUND[what]
    with target_of(name) as target:
        assert put(target, data) == "refused"


_TERABYTE_FRAME = struct.pack("<IBQ", 0xFD2FB528, 0b11100000, 2**40)


def _bad_text(page: dict[str, Any]) -> None:
    """MessagePack without UTF-8 where a name stands."""
    page["names"][0] = msgspec.Raw(b"\xa1\xff")


def _a_terabyte_more(fields: dict[str, Any], page: dict[str, Any]) -> None:
    """In the last member and its frame, so that they add up."""
    page["sizes"][-1] += 2**40
    fields["frame_tar_sizes"][-1] += 2**40


FOUND_IN_MANIFESTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "a frame of a terabyte": _a_terabyte_more,
    "an end of tar that states a terabyte": lambda fields, _: fields.update(
        end_frame=_TERABYTE_FRAME
    ),
    "a name that is no UTF-8": lambda _, page: _bad_text(page),
}
"""With every digest right, as a faulty writer or an adversary would leave them."""


@pytest.mark.parametrize("what", FOUND_IN_MANIFESTS)
def test_a_manifest_with_right_digests_that_fuzzing_found_is_refused(what: str) -> None:
    with target_of("archive") as target:
        assert isinstance(target, ArchiveTarget)
        data = target.with_other_manifest(FOUND_IN_MANIFESTS[what], digests=True)
        assert put(target, data) == "refused"


_PEAK = """
import resource, sys
from pathlib import Path
from fuploader_dagster.archives.reader import Archive
limit = 2**28
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
with Archive.open(Path(sys.argv[1])) as archive:
    print(len(archive.verify(threads=1).damages))
"""


def test_a_small_archive_that_unpacks_to_half_a_gigabyte_is_read_in_much_less(
    tmp_path: Path,
) -> None:
    """Four bytes of zstd can stand for 128 KiB; frames that state no size are decoded in steps."""
    blocks = 2**29 // 2**17
    block = ((2**17 << 3) | 2).to_bytes(3, "little") + b"\0"
    last = ((2**17 << 3) | 3).to_bytes(3, "little") + b"\0"
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 0x38) + block * (blocks - 1) + last
    path = tmp_path / "a.tar.zst"
    path.write_bytes(zstandard.compress(member_header("a", 2**29)) + frame)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr  # tar's end mark is missing


class _Broken(SealTarget):
    """A reader that takes no changed input well."""

    name = "broken"

    @property
    def valid(self) -> Sequence[bytes]:
        return [b"valid"]

    def put(self, data: bytes) -> bool:
        if len(data) > 40:
            raise KeyError("not one of ours")
        return True


def test_an_exception_that_is_not_ours_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """hypothesis then shows the smallest input that does it."""
    broken: dict[str, type[Target]] = {"broken": _Broken}
    monkeypatch.setattr("tests.fuzz.run.TARGETS", broken)
    with pytest.raises(KeyError, match="not one of ours"):
        fuzz("broken", INPUTS, 1)


def test_the_inputs_are_shared_out_whole_and_never_twice() -> None:
    """Each portion has a seed of its own."""
    made = list(portions(1_000_000, 3))
    assert sum(inputs for _, inputs, _ in made) >= 999_990
    assert len({(name, seed) for name, _, seed in made}) == len(made)
