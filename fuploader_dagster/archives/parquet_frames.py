"""Archives that are Parquet files: a row per member, with its content in a column.

What must always hold: any program that reads Parquet reads them. Each row group is checked by its
digest before Parquet's own library gets it, and each member by its own. Memory: a row group at a
time.

A frame is the bytes of a row group. What it decodes to is the content of each of its members,
followed by a zero byte, so that also an empty one has a place. This module needs pyarrow.
"""

from __future__ import annotations

import io
import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuploader_dagster.archives.entries import FrameEntry, MemberEntry
from fuploader_dagster.archives.frame_encoder import (
    Frame,
    FrameEncoder,
    Piece,
    payload_of_pieces,
    payloads,
)
from fuploader_dagster.archives.frame_reader import FrameReader
from fuploader_dagster.archives.manifest import DIGEST_BYTES, Manifest, digest
from fuploader_dagster.archives.members import MemberToPack
from fuploader_dagster.archives.memory_budget import too_large
from fuploader_dagster.archives.parquet_columns import CONTENT, HEADER, NAME, as_type, fields_of
from fuploader_dagster.archives.parquet_end import (
    END,
    FORM,
    KEEPS_KEY,
    MAGIC,
    SCHEMA_KEY,
    ContentNotKept,
    footer_place,
)
from fuploader_dagster.archives.placed_manifest import trailer
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.errors import DamagedArchive, PermanentError

_TYPES = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
}
_NO_PARQUET = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, MemoryError)
_MOST_THRIFT = 2**26
_SEPARATOR = b"\0"
_MOST_BYTES = 2**31 - 2**20
"""Of a content: offsets of Parquet's library have 31 bits."""


class _Sink(io.RawIOBase):
    """Takes what the library writes, until somebody fetches it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._at += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._at

    def fetch(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class ParquetFrames(FrameEncoder):
    """Makes such an archive. Frames are made in order, in one thread."""

    form = FORM
    in_threads = False
    checked_afterwards = True
    frame_bytes = 2**23
    """Of a row group. While it is made its values are Python objects, some times as large."""

    def __init__(
        self,
        level: int,
        columns: Mapping[str, str],
        headers: Sequence[str],
        *,
        found: bool,
        content: bool,
    ) -> None:
        """`columns`: type of each field's column. `found`: whether these were found by looking.
        `content`: whether it is kept."""
        self._columns = columns
        self._content = content
        self.metadata = {} if content else {KEEPS_KEY: "columns"}
        self._headers = headers
        noted = json.dumps({"columns": dict(columns), "found": found}, ensure_ascii=False)
        fields = [pa.field(NAME, pa.string(), nullable=False)]
        fields += [pa.field(HEADER + name, pa.string()) for name in headers]
        fields += [pa.field(name, _TYPES[kind]) for name, kind in columns.items()]
        if content:
            fields.append(pa.field(CONTENT, pa.binary(), nullable=False))
        self._schema = pa.schema(fields)
        self._sink = _Sink()
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"),
            self._schema,
            compression="zstd",
            compression_level=level,
            use_dictionary=list(columns),
            # Of contents nobody asks for the least, and finding it takes six copies of a large one.
            write_statistics=[one.name for one in fields if one.name != CONTENT],
            write_page_checksum=True,
            store_schema=False,
        )
        self._writer.add_key_value_metadata({SCHEMA_KEY: noted.encode()})
        self._footer = b""

    def encode(self, members: Sequence[MemberToPack], raw: bytes, digests: bytes) -> Frame:
        return self._row_group(
            [(member, bytes(payload)) for member, payload in payloads(members, raw)], digests
        )

    def encode_large(
        self, member: MemberToPack, pieces: Iterator[Piece]
    ) -> Iterator[Callable[[], Frame]]:
        if member.size_bytes > _MOST_BYTES:
            raise PermanentError(
                f"{member.name!r} has {member.size_bytes:,} bytes, and a value in a Parquet file "
                f"has at most {_MOST_BYTES:,}",
                hint="the slot is kept, with the file in its segment.tar; for slots to come, set "
                "archive_format: tar.zst",
            )
        parts, found = [], b""
        for part, found in payload_of_pieces(member, pieces):  # noqa: B007 - the last one counts
            parts.append(part)
        content = b"".join(parts)
        parts.clear()  # or they stay in memory until the row group is made
        yield partial(self._row_group, [(member, content)], found)

    def _row_group(self, rows: Sequence[tuple[MemberToPack, bytes]], digests: bytes) -> Frame:
        headers = [from_text(member.headers) for member, _ in rows]
        fields = [fields_of(content) for _, content in rows]
        arrays = [pa.array([member.name for member, _ in rows], pa.string())]
        arrays += [pa.array([one.get(h) for one in headers], pa.string()) for h in self._headers]
        for name, kind in self._columns.items():
            values = [as_type(one.get(name), kind) for one in fields]
            arrays.append(pa.array(values, _TYPES[kind]))
        if self._content:
            arrays.append(_binary([content for _, content in rows]))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(rows))
        data = self._sink.fetch()
        lengths = [member.size_bytes * self._content + len(_SEPARATOR) for member, _ in rows]
        return Frame(data, sum(lengths), digest(data), digests, lengths)

    def end_frame(self) -> bytes:
        self._writer.close()
        # Without any row group, the magic that begins the file is still here; readers look at the
        # one that ends it.
        self._footer = self._sink.fetch().removeprefix(MAGIC)
        return digest(self._footer)

    def ending(self, manifest: Manifest, manifest_bytes: int) -> bytes:
        footer_bytes, magic = END.unpack(self._footer[-END.size :])
        if len(self._footer) != footer_bytes + END.size or magic != MAGIC:
            raise DamagedArchive(
                "pyarrow wrote something else than a footer at the end of a Parquet file",
                hint="nothing was stored; install the version of pyarrow in requirements/run.txt",
            )
        return trailer(manifest_bytes) + self._footer


def _binary(contents: Sequence[bytes]) -> pa.Array:
    """A column of them. That of a single large one is not copied."""
    ends = array("i", accumulate(map(len, contents), initial=0))
    data = b"".join(contents)  # of one, it is that
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(contents), buffers)


def _separated(column: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """The values of a column, each followed by the separator; none is copied."""
    for chunk in column.chunks:
        _, ends, data = chunk.buffers()
        values = memoryview(data or b"")
        places = memoryview(ends).cast("B").cast("i")[chunk.offset :][: len(chunk) + 1]
        for start, end in pairwise(places):
            yield values[start:end]
            yield _SEPARATOR


class _Part(io.RawIOBase):
    """A file of which only one stretch is there."""

    def __init__(self, start: int, data: bytes, size_bytes: int) -> None:
        self._start, self._data, self._size, self._at = start, data, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        begin = self._at - self._start
        if begin < 0 or size < 0 or begin + size > len(self._data):
            raise OSError("the footer leads to bytes of another row group")
        self._at += size
        return self._data[begin : begin + size]


class ParquetReader(FrameReader):
    """Reads members of such an archive."""

    @cached_property
    def _footer(self) -> pq.FileMetaData:
        """What the footer says; its bytes are compared first."""
        start = footer_place(self.source)
        footer = b"" if start is None else self.source.read(start, self.source.size_bytes - start)
        if digest(footer) != self.manifest.end_frame:
            raise DamagedArchive(f"the footer of {self.address} does not match its digest")
        try:
            return pq.read_metadata(io.BytesIO(MAGIC + footer))
        except _NO_PARQUET as error:
            raise DamagedArchive(f"the footer of {self.address} cannot be read: {error}") from error

    def decode_frame(self, frame: FrameEntry, data: bytes) -> bytes:
        footer = self._footer
        index = bisect_left(self.frames, frame.offset, key=lambda one: one.offset)
        try:
            needed = footer.row_group(index).total_byte_size
            if needed > self.memory_bytes:
                what = f"the row group at offset {frame.offset} of {self.address}"
                raise too_large(what, needed, self.memory_bytes)
            part = _Part(frame.offset, data, self.source.size_bytes)
            file = pq.ParquetFile(
                pa.PythonFile(part, mode="r"),
                metadata=footer,
                pre_buffer=False,
                thrift_string_size_limit=_MOST_THRIFT,
                thrift_container_size_limit=_MOST_THRIFT,
            )
            column = CONTENT if self._keeps_content else NAME
            table = file.read_row_group(index, columns=[column], use_threads=False)
            if not self._keeps_content:
                return _SEPARATOR * int(table.num_rows)
            return b"".join(_separated(table.column(CONTENT)))
        except _NO_PARQUET as error:
            raise ValueError(f"it is no row group that can be read: {error}") from error

    @property
    def _keeps_content(self) -> bool:
        return KEEPS_KEY not in self.manifest.metadata

    def check(self, member: MemberEntry) -> None:
        if self._keeps_content:
            super().check(member)
        elif self.whole(member) is None:
            raise self.wrong(member, "it is not in one row group")

    def payload(self, member: MemberEntry) -> Iterator[memoryview]:
        if not self._keeps_content:
            raise ContentNotKept(
                f"{self.address} has only the name, size, digest and columns of {member.name!r}, "
                f"not its content: it was packed with parquet_content: false",
                hint="a query reads the columns; the files themselves are gone with their slot",
            )
        found = self.whole(member)
        if found is None or member.stored_bytes != member.size_bytes + len(_SEPARATOR):
            raise self.wrong(member, "it is not in one row group")
        content, start = found
        payload = memoryview(content)[start : start + member.size_bytes]
        if sha256(payload).digest()[:DIGEST_BYTES] != member.digest:
            raise self.wrong(member, "it does not match its digest")
        yield payload
