"""Archives of JSON lines, `.jsonl.zst`: zstd frames of whole lines, then manifest and seek table.

What must always hold: each line is in one frame, so a member is found and read without the others.
To any other program the file is JSON lines, compressed with zstd. `json_lines` has the format of a
line. A member is in memory as a whole when it is packed and when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256

from fuploader_dagster.archives.entries import MemberEntry
from fuploader_dagster.archives.frame_encoder import Frame, Piece, payload_of_pieces, payloads
from fuploader_dagster.archives.frame_reader import FrameReader
from fuploader_dagster.archives.frame_walk import Chunk, Damage, walk_frames
from fuploader_dagster.archives.json_lines import LINE_START, Line, decode_line, encode_line
from fuploader_dagster.archives.manifest import DIGEST_BYTES
from fuploader_dagster.archives.members import MemberToPack
from fuploader_dagster.archives.memory_budget import too_large
from fuploader_dagster.archives.ranges import RangeSource, ReadAhead
from fuploader_dagster.archives.zstd_frames import ZstdFrames
from fuploader_dagster.errors import TooLarge

_COPIES = 4
"""Of a line, that decoding one takes at most."""


class LineFrames(ZstdFrames):
    """Makes such an archive."""

    form = "jsonl.zst"

    def encode(self, members: Sequence[MemberToPack], raw: bytes, digests: bytes) -> Frame:
        lines = [
            encode_line(Line(member.name, member.headers, bytes(payload)))
            for member, payload in payloads(members, raw)
        ]
        return self.compress(b"".join(lines), digests, list(map(len, lines)))

    def encode_large(
        self, member: MemberToPack, pieces: Iterator[Piece]
    ) -> Iterator[Callable[[], Frame]]:
        parts, digest = [], b""
        for part, digest in payload_of_pieces(member, pieces):  # noqa: B007 - the last one counts
            parts.append(part)
        content = b"".join(parts)
        parts.clear()  # or they stay in memory until the frame is made
        line = encode_line(Line(member.name, member.headers, content))
        del content
        yield partial(self.compress, line, digest, [len(line)])


class LineReader(FrameReader):
    """Reads members of such an archive."""

    def payload(self, member: MemberEntry) -> Iterator[memoryview]:
        if _COPIES * member.stored_bytes > self.memory_bytes:
            what = f"the member {member.name!r} of {self.address}"
            raise too_large(what, _COPIES * member.stored_bytes, self.memory_bytes)
        found = self.whole(member)
        if found is None:
            raise self.wrong(member, "it is not in one frame")
        content, start = found
        try:
            line = decode_line(content[start : start + member.stored_bytes])
        except ValueError as error:
            raise self.wrong(member, str(error)) from error
        if line[:2] != (member.name, member.headers):
            raise self.wrong(member, "its line has another name, or other headers")
        if sha256(line.content).digest()[:DIGEST_BYTES] != member.digest:
            raise self.wrong(member, "it does not match its digest")
        yield memoryview(line.content)


class ScannedLine:
    """A member found without a manifest. Looks like a `ScannedMember`, but is whole already."""

    kind = "file"
    header_bytes = 0
    damage: Damage | None = None

    def __init__(self, line: Line, offset: int, stored_bytes: int, *, checked: bool) -> None:
        self.name, self.headers, self.content = line
        self.size_bytes = len(self.content)
        self.offset = offset
        self.stored_bytes = stored_bytes
        self.is_unproven = not checked

    def chunks(self) -> Iterator[memoryview]:
        yield memoryview(self.content)

    def read_to_end(self) -> bool:
        return True


def is_lines(source: RangeSource, memory_bytes: int) -> bool:
    """Whether the first frame that can be read is one of lines."""
    with suppress(TooLarge):
        for item in walk_frames(ReadAhead(source, 2**18), memory_bytes):
            if isinstance(item, Chunk) and item.data:
                return item.data.startswith(LINE_START)
    return False


def scan_lines(
    source: RangeSource, *, manifest_doubted: bool, memory_bytes: int
) -> Iterator[ScannedLine | Damage]:
    """Every line that can be read, and all damage, in the order of the archive.

    Without a manifest nothing says where the archive ends, so that is a damage too, unless the
    caller has already reported one. Raises `TooLarge`.
    """
    rest = b""
    offset = 0
    for item in walk_frames(ReadAhead(source), memory_bytes):
        if isinstance(item, Damage):
            rest = b""
            yield item
        elif isinstance(item, Chunk):
            if _COPIES * (len(rest) + len(item.data)) > memory_bytes:
                needed = _COPIES * (len(rest) + len(item.data))
                raise too_large(f"a line of {source.address}", needed, memory_bytes)
            *lines, rest = (rest + item.data).split(b"\n")
            for line in lines:
                try:
                    decoded = decode_line(line + b"\n")
                except ValueError as error:
                    yield Damage(f"the line at offset {offset} of the stream is damaged: {error}")
                else:
                    yield ScannedLine(decoded, offset, len(line) + 1, checked=item.checked)
                offset += len(line) + 1
    if rest:
        yield Damage(f"{source.address} is cut off within the line at offset {offset}")
    if not manifest_doubted:
        yield Damage(
            f"{source.address} has no manifest at its end (offset {source.size_bytes}): it is cut "
            f"off, or another program made it"
        )
