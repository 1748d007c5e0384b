"""Reading a `.tar.zst` from front to back: what other tools wrote, what is left of damaged ones.

What must always hold: nothing that is damaged is passed over in silence. A scan ends well only if
every byte was part of a whole frame, tar ended with its end mark, nothing but zeros followed, and
no manifest was met: whoever has one that can be used does not scan.

Understood are ustar, pax and GNU's long names. Behind damage the tar stream is taken up again at
the next frame that begins with a member's header, as ours do.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from fuploader_dagster.errors import DamagedArchive
from fuploader_dagster.frame_walk import Chunk, Damage, Skipped, walk_frames
from fuploader_dagster.range_source import RangeSource, ReadAhead
from fuploader_dagster.tarstream import BLOCK, padding

_CHUNK_BYTES = 2**20
_ZEROS = bytes(_CHUNK_BYTES)


class _Interrupted(Exception):
    """Bytes are missing here; the next ones begin a frame."""

    def __init__(self, damage: Damage) -> None:
        self.damage = damage


class _Ended(Exception):
    """There is nothing more."""


class _TarBytes:
    """The decompressed stream, by the number of bytes that the caller wants."""

    def __init__(self, source: RangeSource) -> None:
        self._walk = walk_frames(source)
        self._block = memoryview(b"")
        self._pending: list[Damage] = []
        self.position = 0
        """In the tar stream; behind damage, counted without what is missing."""
        self.has_manifest = False
        """Whether one was stepped over so far."""

    def _fill(self) -> Chunk:
        for event in self._walk:
            if isinstance(event, Skipped):
                self.has_manifest |= event.is_manifest
            elif isinstance(event, Damage):
                self._block = memoryview(b"")
                raise _Interrupted(event)
            elif event.data:
                return event
        raise _Ended

    def some(self, limit: int) -> memoryview:
        """At least one byte, at most `limit`. Raises `_Interrupted` or `_Ended`."""
        if not self._block:
            self._block = memoryview(self._fill().data)
        part, self._block = self._block[:limit], self._block[limit:]
        self.position += len(part)
        return part

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        parts = []
        while count:
            part = self.some(count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def skip_to_next_frame(self) -> None:
        while not (chunk := self._fill()).starts_frame:
            pass
        self._block = memoryview(chunk.data)


class ScannedMember:
    """One entry of the tar stream. Its payload must be read before the scan goes on."""

    def __init__(
        self, name: str, size_bytes: int, kind: str, offset: int, stream: _TarBytes
    ) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.kind = kind
        """`file`, `directory`, or in words what else it is."""
        self.offset = offset
        """Of its (first) header in the tar stream."""
        self.header_bytes = stream.position - offset
        self.damage: Damage | None = None
        self._stream = stream
        self._left = size_bytes
        self._unread = True

    def chunks(self) -> Iterator[memoryview]:
        """The payload, at most 1 MiB at a time. Raises `DamagedArchive` if it is not whole."""
        try:
            while self._left and self._unread:
                part = self._stream.some(min(self._left, _CHUNK_BYTES))
                self._left -= len(part)
                yield part
            if self._unread:
                self._stream.take(len(padding(self.size_bytes)))
        except _Interrupted as e:
            self.damage = Damage(e.damage.what, self.name)
        except _Ended:
            self.damage = Damage("the archive is cut off within this member", self.name)
        self._unread = False
        if self.damage:
            raise DamagedArchive(str(self.damage))


def scan(
    source: RangeSource, *, manifest_doubted: bool = False
) -> Iterator[ScannedMember | Damage]:
    """Every entry that can be read, and everything that is wrong, in the order of the archive.

    `manifest_doubted`: that the manifest is not used was said already, with the reason.
    """
    source = ReadAhead(source)
    stream = _TarBytes(source)
    resuming = False
    while True:
        offset = stream.position
        try:
            header = _Header.read(stream)
        except _Interrupted as e:
            yield e.damage
            resuming = True
            continue
        except _Ended:
            yield Damage(
                f"{source.address} is cut off at offset {source.size_bytes}: tar's end mark is "
                "missing"
            )
            return
        except tarfile.TarError as e:
            if not resuming:
                yield Damage(
                    f"{source.address} has no tar header at {offset} of the tar stream: {e}"
                )
            resuming = True
            try:
                stream.skip_to_next_frame()
            except _Interrupted as gap:
                yield gap.damage
            except _Ended:
                return
            continue
        if header is None:
            break
        resuming = False
        member = ScannedMember(header.name, header.size_bytes, header.kind, offset, stream)
        yield member
        try:
            for _ in member.chunks():  # what the caller left
                pass
        except DamagedArchive:
            pass
        if member.damage:
            yield member.damage
            resuming = True
    yield from _behind_the_end(source, stream, manifest_doubted)


def _behind_the_end(source: RangeSource, stream: _TarBytes, doubted: bool) -> Iterator[Damage]:
    """Behind tar's end mark there may only be zeros, and frames that are stepped over."""
    found = False
    while True:
        try:
            part = bytes(stream.some(_CHUNK_BYTES))
            if part != _ZEROS[: len(part)]:  # many times as fast as strip
                yield Damage(f"{source.address} has data behind the end of its tar stream")
                return
        except _Interrupted as e:
            yield e.damage
            found = True
        except _Ended:
            break
    if stream.has_manifest and not found and not doubted:
        yield Damage(
            f"{source.address} has a manifest, but no seek table at its end (offset "
            f"{source.size_bytes}) that leads to it"
        )


class _Header(NamedTuple):
    name: str
    size_bytes: int
    kind: str

    @classmethod
    def read(cls, stream: _TarBytes) -> _Header | None:
        """The next header with everything that extends it; None at tar's end mark."""
        pax: dict[str, bytes] = {}
        long_name: bytes | None = None
        while True:
            block = stream.take(BLOCK)
            if not any(block):
                if any(stream.take(BLOCK)):
                    raise tarfile.ReadError("a single block of zeros")
                return None
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
                records = _pax_records(_extension(stream, info.size))
                pax |= records if info.type != tarfile.XGLTYPE else {}
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = _extension(stream, info.size).rstrip(b"\0")
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                _extension(stream, info.size)
            else:
                break
        raw = pax.get("path", long_name)
        name = info.name if raw is None else raw.decode("utf-8", "surrogateescape")
        size = info.size
        if "size" in pax:
            if not pax["size"].isdigit() or len(pax["size"]) > 20:
                raise tarfile.ReadError("a pax size that is no number")
            size = int(pax["size"])
        if size < 0:
            raise tarfile.ReadError("a negative size")
        if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE):
            size = 0
        return cls(name.rstrip("/"), size, _kind(info, pax))


def _kind(info: tarfile.TarInfo, pax: dict[str, bytes]) -> str:
    if info.type == tarfile.GNUTYPE_SPARSE or any(k.startswith("GNU.sparse") for k in pax):
        return "a sparse file"
    if info.isreg():
        return "file"
    if info.isdir():
        return "directory"
    return "a link" if info.issym() or info.islnk() else "neither file nor directory"


_EXTENSION_LIMIT = 2**20  # a name of a megabyte is damage, not a name


def _extension(stream: _TarBytes, size: int) -> bytes:
    if not 0 <= size <= _EXTENSION_LIMIT:
        raise tarfile.ReadError(f"an extended header of {size} bytes")
    return stream.take(size + len(padding(size)))[:size]


def _pax_records(data: bytes) -> dict[str, bytes]:
    """`<length> <key>=<value>\\n` again and again."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        if (
            not length.isdigit()
            or len(length) > 20
            or not len(length) + 2 < int(length) <= len(data)
        ):
            raise tarfile.ReadError("a pax record of no length")
        key, equals, value = data[len(length) + 1 : int(length)].partition(b"=")
        if not equals or value[-1:] != b"\n":
            raise tarfile.ReadError("a pax record that does not end")
        records[key.decode("utf-8", "replace")] = value[:-1]
        data = data[int(length) :]
    return records
