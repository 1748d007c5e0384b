"""docs/formats.md is enough to read an archive: a reader that knows only the page, not our code."""

from __future__ import annotations

import hashlib
import struct
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec
import pytest
import zstandard

from fuploader_dagster.archive import write_archive
from tests.unit.archives import payloads, segment


def documented_reader(content: bytes) -> tuple[dict[str, bytes], dict[str, str]]:
    """Members and metadata, by the words of the page."""
    count, flags, magic = struct.unpack("<IBI", content[-9:])
    assert (flags, magic) == (0, 0x8F92EAB1)
    table_at = len(content) - 9 - 8 * count - 8
    assert struct.unpack_from("<II", content, table_at) == (0x184D2A5E, 8 * count + 9)
    entries = [struct.unpack_from("<II", content, table_at + 8 + 8 * i) for i in range(count)]
    offsets = list(accumulate((size for size, _ in entries), initial=0))
    assert offsets[-1] == table_at
    assert (entries[-2][1], entries[-1][1]) == (0, 1024)

    manifest = content[offsets[-3] : offsets[-2]]
    assert struct.unpack_from("<II", manifest) == (0x184D2A5D, len(manifest) - 8)
    assert manifest[8:16] == b"FUPLMAN\x01"
    assert manifest[16:48] == hashlib.sha256(manifest[48:]).digest()
    columns = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(manifest[48:]))
    assert content[offsets[-2] : table_at] == columns["end_frame"]
    assert [list(e) for e in entries[:-2]] == [
        list(e) for e in zip(columns["frame_sizes"], columns["frame_tar_sizes"], strict=True)
    ]

    tar = b""
    for i, (start, end) in enumerate(pairwise(offsets[:-2])):
        frame = content[start:end]
        tar += zstandard.ZstdDecompressor().decompress(frame)
        half = hashlib.sha256(frame).digest()[:16]
        assert columns["frame_digests"][16 * i : 16 * i + 16] == half
    members = {}
    at = 0
    for i, (name, size, blocks) in enumerate(
        zip(columns["names"], columns["sizes"], columns["header_blocks"], strict=True)
    ):
        payload = tar[at + 512 * blocks : at + 512 * blocks + size]
        half = hashlib.sha256(payload).digest()[:16]
        assert columns["member_digests"][16 * i : 16 * i + 16] == half
        members[name] = payload
        at += 512 * blocks + size + -size % 512
    assert at == len(tar)
    return members, columns["metadata"]


@pytest.mark.parametrize("frame_bytes", [1024, 16_384, 2**20])
def test_the_page_is_enough_to_read_an_archive(tmp_path: Path, frame_bytes: int) -> None:
    contents = payloads()
    with segment(tmp_path / "segment", contents) as source:
        written = write_archive(
            tmp_path / "a", source, frame_bytes=frame_bytes, metadata={"z": "1", "a": "2"}
        )
    members, metadata = documented_reader(written.path.read_bytes())
    assert list(members.items()) == list(contents.items())
    assert list(metadata.items()) == [("a", "2"), ("z", "1")]


def test_the_keys_of_the_manifest_are_those_of_the_page(tmp_path: Path) -> None:
    with segment(tmp_path / "segment", {"a": b"1"}) as source:
        content = write_archive(tmp_path / "a", source).path.read_bytes()
    at = content.index(b"FUPLMAN") + 40
    columns = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(content[at:]))
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    section = page.partition("### Manifest")[2].partition("###")[0]
    documented = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert list(columns) == documented
