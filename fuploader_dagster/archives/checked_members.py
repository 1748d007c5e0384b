"""Reads the members to pack, in pieces that fit into memory, and compares each with its record.

What must always hold: what is passed on was compared with what was recorded about it, or the job
that gets it compares it: the whole segment with its digest if the seal has one, otherwise each
payload, header and padding by itself. What contradicts that raises the source's `damage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from itertools import chain, groupby
from typing import Any, NamedTuple

from xxhash import xxh3_128

from fuploader_dagster.archives.frame_encoder import (
    Frame,
    FrameEncoder,
    Piece,
    payload_of_pieces,
    payloads,
)
from fuploader_dagster.archives.manifest import DIGEST_BYTES
from fuploader_dagster.archives.members import MemberSource
from fuploader_dagster.disk.tar_headers import member_header, padding
from fuploader_dagster.errors import DamagedData


class FrameCut(NamedTuple):
    """`members[first:last]`, or the tar bytes from `start` to `stop` of a single member."""

    first: int
    last: int
    start: int = 0
    stop: int | None = None


def cut_frames(lengths: Sequence[int], frame_bytes: int) -> Iterator[FrameCut]:
    """Divide members into frames, given each member's length in the tar stream.

    Members share a frame while they fit. A member longer than a frame gets its own frames, up to
    four times as long (nobody reads half of it, and it compresses better).
    """
    first, filled = 0, 0
    for i, length in enumerate(lengths):
        if filled and filled + length > frame_bytes:
            yield FrameCut(first, i)
            first, filled = i, 0
        if length > frame_bytes:
            for start in range(0, length, 4 * frame_bytes):
                yield FrameCut(i, i + 1, start, min(start + 4 * frame_bytes, length))
            first = i + 1
        else:
            filled += length
    if filled:
        yield FrameCut(first, len(lengths))


def jobs(
    source: MemberSource, frame_bytes: int, encoder: FrameEncoder
) -> Iterator[Callable[[], Frame]]:
    """Jobs that give the frames of the source's members, in this order. Reads here, in order."""
    by_whole = source.xxh128 is not None
    whole = xxh3_128()
    for first, cuts in groupby(cut_frames(source.lengths, frame_bytes), lambda cut: cut.first):
        cut = next(cuts)
        if cut.stop is not None:
            all_cuts = chain([cut], cuts)  # noqa: B031 - once, but for the first one
            pieces = _pieces(source, all_cuts, check=not by_whole)
            yield from encoder.encode_large(source.members[first], _seen(pieces, whole))
            continue
        raw = source.read(first, cut.last)
        if by_whole:
            whole.update(raw)
            members = source.members[first : cut.last]
            recorded = b"".join(m.sha256[:DIGEST_BYTES] for m in members)
            yield partial(encoder.encode, members, raw, recorded)
        else:
            yield partial(_checked, encoder, source, cut, raw)
    if by_whole and whole.hexdigest() != source.xxh128:
        _check_each(source, frame_bytes)
        which = "that there are no members"
        if source.members:
            which = f"each member from {source.place(0)} on"
        raise source.damage(
            f"{which} matches the index, but all of them together do not match the seal",
            hint="nothing was packed; what changed is segment_xxh128 in the slot's seal.json",
        )


def unchecked_contents(source: MemberSource, frame_bytes: int) -> Iterator[bytes]:
    """The content of each member, for a look at all of them before they are packed."""
    for first, cuts in groupby(cut_frames(source.lengths, frame_bytes), lambda cut: cut.first):
        cut = next(cuts)
        if cut.stop is None:
            raw = source.read(first, cut.last)
            for _, payload in payloads(source.members[first : cut.last], raw):
                yield bytes(payload)
        else:
            pieces = _pieces(source, chain([cut], cuts), check=False)  # noqa: B031
            member = source.members[first]
            yield b"".join(part for part, _ in payload_of_pieces(member, pieces))


def _checked(encoder: FrameEncoder, source: MemberSource, cut: FrameCut, raw: bytes) -> Frame:
    digests = check_members(raw, source, cut.first, cut.last)
    return encoder.encode(source.members[cut.first : cut.last], raw, digests)


def _check_each(source: MemberSource, frame_bytes: int) -> None:
    """Find the member that is not what was recorded, if it is one of them."""
    for first, cuts in groupby(cut_frames(source.lengths, frame_bytes), lambda cut: cut.first):
        cut = next(cuts)
        if cut.stop is None:
            check_members(source.read(first, cut.last), source, first, cut.last)
        else:
            for _ in _pieces(source, chain([cut], cuts), check=True):
                pass


def _pieces(source: MemberSource, cuts: Iterator[FrameCut], *, check: bool) -> Iterator[Piece]:
    """The tar bytes of a large member, with its digest at the last piece. `check`: the digest is
    that of the bytes, compared with what was recorded; otherwise what was recorded."""
    large: _LargeMember | None = None
    for cut in cuts:
        assert cut.stop is not None  # noqa: S101 - large members are cut
        raw = source.read_piece(cut.first, cut.start, cut.stop)
        last = cut.stop == source.lengths[cut.first]
        if not check:
            recorded = source.members[cut.first].sha256
            yield Piece(raw, recorded[:DIGEST_BYTES] if last else b"")
            continue
        large = large or _LargeMember(source, cut.first)
        yield Piece(raw, large.add(raw, last=last))


def _seen(pieces: Iterator[Piece], whole: Any) -> Iterator[Piece]:
    for piece in pieces:
        whole.update(piece.raw)
        yield piece


def check_members(raw: bytes, source: MemberSource, first: int, last: int) -> bytes:
    """Compare the tar bytes of `members[first:last]` with the index; return their digests.

    Raises the source's `damage`, naming the member and where it is stored.
    """
    digests = []
    view = memoryview(raw)
    at = 0
    for i, member in enumerate(source.members[first:last], first):
        size, recorded = member.size_bytes, member.sha256
        header = member_header(member.name, size, member.headers)
        start = at + len(header)
        end = start + size
        found = sha256(view[start:end]).digest()
        if found != recorded:
            raise _damaged(source, i, _OTHER_PAYLOAD)
        fill = padding(size)
        if not raw.startswith(header, at) or not raw.startswith(fill, end):
            raise _damaged(source, i, _OTHER_HEADER)
        digests.append(found[:DIGEST_BYTES])
        at = end + len(fill)
    return b"".join(digests)


class _LargeMember:
    """The same comparison for a member that comes in pieces."""

    def __init__(self, source: MemberSource, index: int) -> None:
        self._source, self._index = source, index
        member = source.members[index]
        self._recorded = member.sha256
        self._expected_start = member_header(member.name, member.size_bytes, member.headers)
        self._left = member.size_bytes
        self._digest = sha256()

    def add(self, raw: bytes, *, last: bool) -> bytes:
        """Take the next piece; with the last one, return the digest (nothing before)."""
        start = self._expected_start
        header, self._expected_start = start[: len(raw)], start[len(raw) :]
        payload = memoryview(raw)[len(header) :][: self._left]
        self._digest.update(payload)
        self._left -= len(payload)
        fill = raw[len(header) + len(payload) :]
        if not raw.startswith(header) or fill.strip(b"\0"):
            raise _damaged(self._source, self._index, _OTHER_HEADER)
        if not last:
            return b""
        found = self._digest.digest()
        if found != self._recorded:
            raise _damaged(self._source, self._index, _OTHER_PAYLOAD)
        return found[:DIGEST_BYTES]


_OTHER_PAYLOAD = "its payload does not match the recorded digest"
_OTHER_HEADER = "its header or padding is not what was written"


def _damaged(source: MemberSource, index: int, what: str) -> DamagedData:
    return source.damage(
        f"member {source.place(index)} is damaged: {what}",
        hint="the disk is failing, or something changed a sealed slot: check dmesg and SMART",
    )
