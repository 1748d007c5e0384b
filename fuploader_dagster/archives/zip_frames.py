"""Archives that are zip files: entries, then pages and manifest, then the zip's own directory.

What must always hold: any program that reads zip files reads them; between the entries and the
directory, where the manifest stands, no program looks. Each member, however large, passes through
in pieces. The message headers that are kept with a member are the comment of its entry.

A frame is a run of entries, or a piece of a large one: the stream of all frames is the file itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256

from fuploader_dagster.archives.entries import FrameEntry, MemberEntry
from fuploader_dagster.archives.frame_encoder import (
    Frame,
    FrameEncoder,
    Piece,
    not_decoded,
    payload_of_pieces,
    payloads,
)
from fuploader_dagster.archives.frame_reader import FrameReader
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.manifest import DIGEST_BYTES, Manifest, digest
from fuploader_dagster.archives.members import MemberToPack
from fuploader_dagster.archives.placed_manifest import (
    TRAILER_BYTES,
    find_before,
    trailer,
    trailer_damages,
)
from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.archives.zip_records import (
    DEFLATED,
    LOCAL,
    MARK,
    STORED,
    ZipEntry,
    central_record,
    descriptor,
    directory_place,
    end_records,
    local_header,
)
from fuploader_dagster.errors import DamagedArchive

FORM = "zip"
_RAW = -15
"""Deflate without a header of its own."""
_PIECE_BYTES = 2**20
_HIGHEST_LEVEL = 9


class ZipFrames(FrameEncoder):
    """Makes such an archive."""

    form = FORM

    def __init__(self, level: int) -> None:
        self._level = min(level, _HIGHEST_LEVEL)
        self._directory = bytearray()
        self._count = 0

    def encode(self, members: Sequence[MemberToPack], raw: bytes, digests: bytes) -> Frame:
        made = [self._entry(member, payload) for member, payload in payloads(members, raw)]
        data = b"".join(packed for _, packed in made)
        entries = [entry for entry, _ in made]
        return _frame(data, digests, [len(packed) for _, packed in made], entries)

    def _entry(self, member: MemberToPack, payload: memoryview) -> tuple[ZipEntry, bytes]:
        compressor = zlib.compressobj(self._level, zlib.DEFLATED, _RAW)
        packed = compressor.compress(payload) + compressor.flush()
        if zlib.decompress(packed, _RAW, len(payload)) != payload:
            raise not_decoded()
        method = DEFLATED
        if len(packed) >= len(payload):
            method, packed = STORED, bytes(payload)
        sizes = (zlib.crc32(payload), len(packed), len(payload))
        entry = ZipEntry(*_texts(member), method, *sizes, later=False)
        return entry, local_header(entry) + packed

    def encode_large(
        self, member: MemberToPack, pieces: Iterator[Piece]
    ) -> Iterator[Callable[[], Frame]]:
        compressor = zlib.compressobj(self._level, zlib.DEFLATED, _RAW)
        check = zlib.decompressobj(_RAW)
        entry = ZipEntry(*_texts(member), DEFLATED, 0, 0, member.size_bytes, later=True)
        waiting = local_header(entry)
        stored, packed_bytes, crc, crc_again = 0, 0, 0, 0
        for part, found in payload_of_pieces(member, pieces):
            packed = compressor.compress(part) + (compressor.flush() if found else b"")
            crc, crc_again = zlib.crc32(part, crc), zlib.crc32(check.decompress(packed), crc_again)
            packed_bytes += len(packed)
            waiting += packed
            if found:
                if crc != crc_again or not check.eof:
                    raise not_decoded()
                entry = entry._replace(crc32=crc, packed_bytes=packed_bytes)
                waiting += descriptor(entry)
                yield partial(_frame, waiting, found, [stored + len(waiting)], [entry])
            elif len(waiting) >= _PIECE_BYTES:
                yield partial(_frame, waiting, b"", (), ())
                stored, waiting = stored + len(waiting), b""

    def placed(self, frame: Frame, offset: int) -> None:
        end = offset + len(frame.data)
        starts = []
        for length in reversed(frame.lengths):  # the first of them may begin in an earlier frame
            end -= length
            starts.append(end)
        for entry, start in zip(frame.notes, reversed(starts), strict=True):
            assert isinstance(entry, ZipEntry)  # noqa: S101 - ours
            self._directory += central_record(entry, start)
        self._count += len(frame.notes)

    def end_frame(self) -> bytes:
        return digest(bytes(self._directory))

    def ending(self, manifest: Manifest, manifest_bytes: int) -> bytes:
        offset = manifest.offset + manifest_bytes + TRAILER_BYTES
        end = end_records(self._count, len(self._directory), offset)
        return trailer(manifest_bytes) + bytes(self._directory) + end


def _texts(member: MemberToPack) -> tuple[bytes, bytes]:
    return member.name.encode(), member.headers.encode()


def _frame(
    data: bytes, digests: bytes, lengths: Sequence[int], entries: Sequence[ZipEntry]
) -> Frame:
    return Frame(data, len(data), digest(data), digests, lengths, entries)


class ZipReader(FrameReader):
    """Reads members of such an archive."""

    def decode_frame(self, frame: FrameEntry, data: bytes) -> bytes:
        return data

    def payload(self, member: MemberEntry) -> Iterator[memoryview]:
        entry, start, end = self._entry(member)
        found = sha256()
        left = member.size_bytes
        packed = self.stream(start, end)
        for piece in packed if entry.method == STORED else self._inflated(packed, member):
            left -= len(piece)
            if left < 0:
                raise self.wrong(member, "it unpacks to more than the manifest says")
            found.update(piece)
            yield piece
        if left or found.digest()[:DIGEST_BYTES] != member.digest:
            raise self.wrong(member, "it does not match its digest")

    def _entry(self, member: MemberEntry) -> tuple[ZipEntry, int, int]:
        """What its local header says, and where its data begin and end."""
        name = member.name.encode("utf-8", "surrogatepass")
        start = member.offset + LOCAL.size + len(name)
        head = b"".join(self.stream(member.offset, min(start, member.end)))
        if len(head) != LOCAL.size + len(name) or head[LOCAL.size :] != name:
            raise self.wrong(member, "its zip header is not that of its name")
        fields = LOCAL.unpack(head[: LOCAL.size])
        method, crc, packed_bytes, size = fields[3], *fields[6:9]
        later = bool(fields[2] & 8)
        entry = ZipEntry(name, b"", method, crc, packed_bytes, size, later)
        if later:
            entry = entry._replace(size_bytes=member.size_bytes)
        header = local_header(entry)
        start = member.offset + len(header)
        end = member.end - (len(descriptor(entry._replace(packed_bytes=0))) if later else 0)
        if (
            method not in (STORED, DEFLATED)
            or start > end
            or b"".join(self.stream(member.offset, start)) != header
            or (not later and (entry.size_bytes, end - start) != (member.size_bytes, packed_bytes))
        ):
            raise self.wrong(member, "its zip header does not match the manifest")
        return entry, start, end

    def _inflated(self, packed: Iterator[memoryview], member: MemberEntry) -> Iterator[memoryview]:
        """The data, unpacked, at most 1 MiB at a time whatever they unpack to."""
        inflate = zlib.decompressobj(_RAW)
        try:
            for piece in packed:
                rest: bytes | memoryview = piece
                while rest and not inflate.eof:
                    yield memoryview(inflate.decompress(rest, _PIECE_BYTES))
                    rest = inflate.unconsumed_tail
                if rest or inflate.unused_data:
                    raise self.wrong(member, "bytes follow its data")
            while not inflate.eof and (more := inflate.decompress(b"", _PIECE_BYTES)):
                yield memoryview(more)
        except zlib.error as error:
            raise self.wrong(member, f"it cannot be unpacked: {error}") from error
        if not inflate.eof:
            raise self.wrong(member, "its data are cut off")


def find_zip_manifest(source: RangeSource) -> Manifest | None:
    """The manifest of a zip of ours; None if this is none. Raises `DamagedArchive`."""
    place = directory_place(source)
    if place is None:
        return None
    manifest = find_before(source, place[0], FORM)
    if manifest is None and source.read(source.size_bytes - len(MARK), len(MARK)) == MARK:
        raise DamagedArchive(
            f"the mark before the directory at offset {place[0]} of {source.address} is damaged"
        )
    return manifest


def zip_damages(source: RangeSource, manifest: Manifest) -> Iterator[Damage]:
    """Compare what follows the manifest."""
    place = directory_place(source)
    assert place is not None  # noqa: S101 - the manifest was found by it
    start, end = place
    yield from trailer_damages(source, manifest, start)
    found = sha256()
    for at in range(start, end, _PIECE_BYTES):
        found.update(source.read(at, min(_PIECE_BYTES, end - at)))
    size = source.size_bytes
    expected = end_records(manifest.member_count, end - start, start)
    whole = source.read(end, size - end)
    if found.digest()[:DIGEST_BYTES] != manifest.end_frame or whole != expected:
        yield Damage(f"the zip directory at offset {start} of {source.address} changed")
