"""Members for the archive tests: every kind of name and size."""

from __future__ import annotations

import random
from hashlib import sha256
from pathlib import Path

from xxhash import xxh3_128

from fuploader_dagster.archives.members import PlainMember
from fuploader_dagster.delivery.slot_members import SegmentMembers
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.disk.tar_headers import member_header, padding


def payloads(count: int = 60, seed: int = 1) -> dict[str, bytes]:
    """Ordinary messages, and each special case once. Compresses like JSON does."""
    rng = random.Random(seed)
    words = [rng.randbytes(3).hex() for _ in range(400)]
    members = {
        f"{rng.randrange(10**18)}.json": " ".join(rng.choices(words, k=rng.randrange(300))).encode()
        for _ in range(count)
    }
    return members | {
        "empty.json": b"",
        "one block": b"x" * 512,
        "n" * 100: b"a name that just fits",
        "n" * 255: b"a long name",
        "消息.json": "内容".encode(),
        "large.bin": rng.randbytes(40_000),
        "very large.bin": rng.randbytes(200_000),
        "last.json": b"{}",
    }


Headers = dict[str, str]
"""The message headers of some members, by name, as text."""


def headers_for(contents: dict[str, bytes]) -> Headers:
    """Message headers for most of the members: short ones, long ones, any letters."""
    made: Headers = {}
    for number, name in enumerate(contents):
        if number % 5:
            values = {"cmd": f"größe/{number}", "content-type": "x" * (number % 7 * 150)}
            made[name] = to_text(values)
    return made


def members(contents: dict[str, bytes], headers: Headers | None = None) -> list[PlainMember]:
    return [
        PlainMember(n, len(b), sha256(b).digest(), (headers or {}).get(n, ""))
        for n, b in contents.items()
    ]


def segment(
    path: Path, contents: dict[str, bytes], headers: Headers | None = None, *, sealed: bool = False
) -> SegmentMembers:
    """A segment file that holds the contents, opened for packing; with the seal's digest or not."""
    data = b"".join(
        member_header(n, len(b), (headers or {}).get(n, "")) + b + padding(len(b))
        for n, b in contents.items()
    )
    path.write_bytes(data)
    return SegmentMembers(
        path, members(contents, headers), xxh128=xxh3_128(data).hexdigest() if sealed else None
    )


class InMemory:
    """An archive as a remote one is seen: range reads, which are counted."""

    def __init__(self, content: bytes) -> None:
        self.address = "memory"
        self.content = content
        self.size_bytes = len(content)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        self.reads.append((offset, length))
        return self.content[offset : offset + length]

    def close(self) -> None:
        pass
