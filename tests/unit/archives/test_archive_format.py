"""docs/formats.md is enough to read an archive: a reader that knows only the page, not our code."""

from __future__ import annotations

import hashlib
import struct
import zlib
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from fuploader_dagster.archives.manifest import Manifest
from fuploader_dagster.archives.manifest_pages import Page
from fuploader_dagster.archives.writer import write_archive
from tests.unit.archives.archives import headers_for, payloads, segment


def documented_reader(
    content: bytes, version: int = 1
) -> tuple[dict[str, bytes], dict[str, str], dict[str, str]]:
    """Members, metadata and the members' message headers, by the words of the page."""
    count, flags, magic = struct.unpack("<IBI", content[-9:])
    assert (flags, magic) == (0, 0x8F92EAB1)
    table_at = len(content) - 9 - 8 * count - 8
    assert struct.unpack_from("<II", content, table_at) == (0x184D2A5E, 8 * count + 9)
    entries = [struct.unpack_from("<II", content, table_at + 8 + 8 * i) for i in range(count)]
    offsets = list(accumulate((size for size, _ in entries), initial=0))
    assert offsets[-1] == table_at
    *frames, pages, (_, nothing), (end_size, end) = entries
    assert (pages[1], nothing, end) == (0, 0, 1024)

    manifest = content[offsets[-3] : offsets[-2]]
    assert struct.unpack_from("<II", manifest) == (0x184D2A5D, len(manifest) - 8)
    assert manifest[8:16] == b"FUPLMAN" + bytes([version])
    covered = manifest[48:] if version == 1 else manifest[8:16] + manifest[48:]
    assert manifest[16:48] == hashlib.sha256(covered).digest()
    top = unpacked(manifest[48:])
    assert content[offsets[-2] : table_at] == top["end_frame"]
    assert len(top["end_frame"]) == end_size
    assert frames == list(zip(top["frame_sizes"], top["frame_tar_sizes"], strict=True))

    tar = b""
    for i, (start, stop) in enumerate(pairwise(offsets[:-3])):
        frame = content[start:stop]
        tar += zstandard.ZstdDecompressor().decompress(frame)
        assert half(top["frame_digests"], i) == hashlib.sha256(frame).digest()[:16]

    found = []
    headers = {}
    at = offsets[-4] + 8
    assert struct.unpack_from("<II", content, at - 8) == (0x184D2A5C, pages[0] - 8)
    for i, size in enumerate(top["page_sizes"]):
        packed = content[at : at + size]
        at += size
        assert half(top["page_digests"], i) == hashlib.sha256(packed).digest()[:16]
        page = unpacked(packed)
        assert ("headers" in page) is (version == 2)
        for name, text in zip(page["names"], page.get("headers", ()), strict=version == 2):
            headers |= {name: text} if text else {}
        for j, (name, payload_size, block, header) in enumerate(
            zip(
                page["names"],
                page["sizes"],
                accumulate(page["distances"]),
                page["header_blocks"],
                strict=True,
            )
        ):
            assert zlib.crc32(name.encode()) * len(top["page_sizes"]) // 2**32 == i
            start = 512 * (block + header)
            payload = tar[start : start + payload_size]
            assert half(page["digests"], j) == hashlib.sha256(payload).digest()[:16]
            found.append((block, name, payload))
    assert len(found) == top["member_count"]
    assert sum(len(payload) for _, _, payload in found) == top["payload_bytes"]
    return {name: payload for _, name, payload in sorted(found)}, top["metadata"], headers


def unpacked(packed: bytes) -> Any:
    return msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(packed))


def half(digests: bytes, index: int) -> bytes:
    return digests[16 * index : 16 * index + 16]


@pytest.mark.parametrize(("count", "frame_bytes"), [(60, 1024), (60, 2**20), (9000, 2**18)])
def test_the_page_is_enough_to_read_an_archive(
    tmp_path: Path, count: int, frame_bytes: int
) -> None:
    contents = payloads(count)
    with segment(tmp_path / "segment", contents) as source:
        written = write_archive(
            tmp_path / "a", source, frame_bytes=frame_bytes, metadata={"z": "1", "a": "2"}
        )
    members, metadata, headers = documented_reader(written.path.read_bytes())
    assert list(members.items()) == list(contents.items())
    assert list(metadata.items()) == [("a", "2"), ("z", "1")]
    assert headers == {}


@pytest.mark.parametrize("frame_bytes", [1024, 2**20])
def test_the_page_is_enough_to_read_an_archive_with_message_headers(
    tmp_path: Path, frame_bytes: int
) -> None:
    contents = payloads()
    kept = headers_for(contents)
    with segment(tmp_path / "segment", contents, kept) as source:
        written = write_archive(tmp_path / "a", source, frame_bytes=frame_bytes)
    members, _, headers = documented_reader(written.path.read_bytes(), version=2)
    assert list(members.items()) == list(contents.items())
    assert headers == kept


@pytest.mark.parametrize(("heading", "record"), [("Manifest", Manifest), ("Pages", Page)])
def test_the_keys_are_those_of_the_page(heading: str, record: type[msgspec.Struct]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    section = page.partition(f"### {heading}\n")[2].partition("###")[0]
    documented = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert list(record.__struct_fields__) == documented
