"""Member headers are what every tar reads, and the same bytes for ever."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.disk.tar_headers import (
    END,
    header_bytes,
    member_bytes,
    member_header,
    padding,
)
from fuploader_dagster.errors import BadMessage

NAMES = [
    "a",
    "message.json",
    "with space and ~2.json",
    "n" * 99,
    "n" * 100,
    "n" * 101,
    "n" * 255,
    "消息.json",
    "é" * 50,
    "é" * 127,
    "x" * 98 + "é",
]

file_names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=255
).filter(lambda name: name not in (".", ".."))


kept_headers = st.dictionaries(st.text(max_size=20), st.text(max_size=600), min_size=1).map(to_text)


def stream(members: dict[str, bytes], headers: str = "") -> bytes:
    parts = [member_header(n, len(b), headers) + b + padding(len(b)) for n, b in members.items()]
    return b"".join(parts) + END


def payload(name: str) -> bytes:
    return (name.encode() * 37)[: 7 * len(name)]


def test_the_header_is_one_block_if_ustar_suffices() -> None:
    assert len(member_header("n" * 100, 8**11 - 1)) == 512
    assert len(member_header("n" * 101, 0)) == 3 * 512
    assert len(member_header("n", 8**11)) == 3 * 512


def test_headers_never_change() -> None:
    """A changed byte here makes a re-packed archive another object than the stored one."""
    everything = b"".join(member_header(n, s) for n in NAMES for s in (0, 1700, 8**11 - 1, 8**11))
    assert (
        hashlib.sha256(everything).hexdigest()
        == "78c53c97e9d31a6aded962cfd7d6f60f5f507ecc506799fc2fe46dedf2fb153f"
    )
    kept = ['{"cmd":"thumb/64"}', '{"größe":"\\n\x7f"}', '{"x":"' + "x" * 16376 + '"}']
    with_headers = b"".join(member_header(n, s, h) for n in NAMES for s in (0, 8**11) for h in kept)
    assert (
        hashlib.sha256(with_headers).hexdigest()
        == "cfba7995535bc567ddd289739f062d6b7c5912832c463d39274e273a3df12c74"
    )


def test_message_headers_are_the_comment_of_a_pax_header() -> None:
    assert member_header("a.json", 5, '{"cmd":"64"}') == (
        member_header("././@PaxHeader", 24)[:148]
        + b"011464\0 x"
        + member_header("a", 0)[157:]
        + b'24 comment={"cmd":"64"}\n'.ljust(512, b"\0")
        + member_header("a.json", 5)
    )


@given(file_names, st.integers(min_value=0, max_value=2**45), st.one_of(st.just(""), kept_headers))
@example("n" * 100, 8**11 - 1, "")
@example("n", 8**11, "")
@example("n", 8**11, '{"cmd":"64"}')
@settings(max_examples=300)
def test_tarfile_reads_back_any_name_size_and_headers(name: str, size: int, headers: str) -> None:
    """What tarfile parses is what was written, and nothing else is set."""
    header = member_header(name, size, headers)
    assert len(header) % 512 == 0
    assert header_bytes(name, size, headers) == len(header)
    assert member_bytes(name, size, headers) == len(header) + size + len(padding(size))
    with tarfile.open(fileobj=io.BytesIO(header), mode="r:") as tar:
        member = tar.next()
    assert member is not None
    assert (member.name, member.size) == (name, size)
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
    assert (member.uname, member.gname, member.type) == ("", "", tarfile.REGTYPE)
    assert member.pax_headers.get("comment", "") == headers


@given(st.integers(min_value=0, max_value=10**12))
def test_padding_fills_up_to_a_block_with_zeros(size: int) -> None:
    assert (size + len(padding(size))) % 512 == 0
    assert padding(size) == bytes(len(padding(size)))
    assert len(padding(size)) < 512


@pytest.mark.parametrize("tool", [["tar", "-x", "-f"], ["bsdtar", "-x", "-f"]])
@pytest.mark.parametrize("headers", ["", '{"größe":"thumb/64"}', '{"x":"' + "x" * 16376 + '"}'])
def test_tar_programs_extract_every_kind_of_name(
    tool: list[str], headers: str, tmp_path: Path
) -> None:
    """GNU tar and bsdtar find the same files, names and payloads, and complain about nothing."""
    members = {name: payload(name) for name in NAMES} | {"empty": b""}
    archive = tmp_path / "a.tar"
    archive.write_bytes(stream(members, headers))
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [*tool, str(archive)],
        cwd=out,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    assert {p.name: p.read_bytes() for p in out.iterdir()} == members


@pytest.mark.parametrize("tool", [["tar", "-tv", "-f"], ["bsdtar", "-tv", "-f"]])
def test_tar_programs_read_sizes_beyond_eight_gib(tool: list[str], tmp_path: Path) -> None:
    """A 9 GiB member (a sparse file) is followed by the next one at the right place."""
    size = 9 * 2**30
    archive = tmp_path / "big.tar"
    with archive.open("wb") as f:
        f.write(member_header("big", size))
        f.seek(size, 1)
        f.write(member_header("next", 3) + b"abc" + padding(3) + END)
    listed = subprocess.run([*tool, str(archive)], capture_output=True, check=True, text=True)
    lines = [line.split() for line in listed.stdout.splitlines()]
    assert [(line[-1], str(size) in line) for line in lines] == [("big", True), ("next", False)]


@pytest.mark.parametrize("name", ["\ud800", "a\udcff.json", "n" * 200 + "\udfff"])
def test_a_name_that_is_not_unicode_is_a_bad_message(name: str) -> None:
    with pytest.raises(BadMessage, match="cannot be written as UTF-8"):
        member_header(name, 1)


def test_headers_that_are_not_unicode_are_a_bad_message() -> None:
    with pytest.raises(BadMessage, match=r"message headers .* cannot be written as UTF-8"):
        member_header("a", 1, '{"a":"\udcff"}')
