"""Archives of the other formats, read in every way; also forged ones with all digests right."""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import msgspec
import zstandard

from fuploader_dagster.archives import manifest
from fuploader_dagster.archives.json_lines import decode_line, encode_line
from fuploader_dagster.archives.listed_members import read_pages
from fuploader_dagster.archives.manifest import Manifest, digest
from fuploader_dagster.archives.manifest_pages import pages_frame
from fuploader_dagster.archives.memory_budget import Budget
from fuploader_dagster.archives.parquet_end import footer_place
from fuploader_dagster.archives.placed_manifest import trailer
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.seek_table import seek_table
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.archives.zip_records import directory_place, end_records
from tests.fuzz.archive_targets import ArchiveTarget, change_one
from tests.fuzz.mutation import Edit, mutated
from tests.fuzz.target import Target
from tests.unit.archives.archives import InMemory, headers_for, payloads, segment
from tests.unit.archives.forms import ODD_CONTENTS


class FormTarget(ArchiveTarget):
    """`repaired` changes a frame, the end, the manifest or its page, and puts all digests right."""

    form: ClassVar[str]
    share = 5

    @cached_property
    def valid(self) -> Sequence[bytes]:
        some = {name: content[:300] for name, content in (payloads(2) | ODD_CONTENTS).items()}
        made = []
        for frame_bytes, headers in ((2048, {}), (2**20, headers_for(some))):
            path = self.folder / f"{frame_bytes}.{self.form}"
            with segment(self.folder / "segment", some, headers) as source:
                write_archive(path, source, form=self.form, frame_bytes=frame_bytes)
            made.append(path.read_bytes())
        return made

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        base = self.valid[len(data) % len(self.valid)]
        source = InMemory(base)
        found = Archive(source).manifest
        assert found is not None
        fields = msgspec.structs.asdict(found)
        frames = [base[f.offset : f.offset + f.size_bytes] for f in found.frames()]
        members = read_pages(source, found, Budget("memory", 2**26))
        page = {
            "names": [m.name for m in members],
            "sizes": [m.size_bytes for m in members],
            "distances": [0, *(m.stored_bytes for m in members[:-1])],
            "header_blocks": [],
            "digests": b"".join(m.digest or b"" for m in members),
            "headers": [m.headers for m in members],
            "lengths": [m.stored_bytes for m in members],
        }
        end = self.end_of(base, found)
        what = len(data) % 4
        if what == 0:
            which = len(changes) % len(frames)
            content = self.unpacked(frames[which])
            content = mutated(content, changes, self.valid)
            fields["frame_tar_sizes"] = [*fields["frame_tar_sizes"]]
            if self.is_packed:
                fields["frame_tar_sizes"][which] = len(content)
            frames[which] = self.packed(content)
        elif what == 1:
            end = mutated(end, changes, self.valid)
        else:
            for name in ("frame_sizes", "frame_tar_sizes", "page_sizes"):
                fields[name] = list(fields[name])
            for kind, place, value in changes:
                change_one(page if kind % 2 else fields, place, value)
        fields["frame_digests"] = b"".join(map(digest, frames))
        fields["frame_sizes"] = list(map(len, frames))
        return self._put_together(frames, fields, page, end)

    def _put_together(
        self, frames: list[bytes], fields: dict[str, Any], page: dict[str, Any], end: bytes
    ) -> bytes:
        packed = zstandard.compress(msgspec.msgpack.encode(page))
        fields["page_sizes"] = [len(packed)]
        fields["page_digests"] = digest(packed)
        fields["end_frame"] = self.end_frame(end)
        body = zstandard.compress(msgspec.msgpack.encode(fields))
        mark = b"FUPLMAN\x03"
        body = mark + manifest._own_digest(mark, body) + body
        closing = struct.pack("<II", manifest.MANIFEST_MAGIC, len(body)) + body
        before = b"".join(frames) + pages_frame([packed])
        return before + closing + self.ending(fields, end, len(before), len(closing))

    is_packed = False

    def unpacked(self, frame: bytes) -> bytes:
        return frame

    def packed(self, content: bytes) -> bytes:
        return content

    @abstractmethod
    def end_of(self, base: bytes, found: Manifest) -> bytes:
        """What follows manifest and mark, as far as its digest is in the manifest."""

    def end_frame(self, end: bytes) -> bytes:
        return digest(end)

    @abstractmethod
    def ending(self, fields: dict[str, Any], end: bytes, before: int, closing: int) -> bytes: ...


class LinesTarget(FormTarget):
    """`.jsonl.zst`."""

    name = "archive-jsonl"
    form = "jsonl.zst"
    is_packed = True

    def unpacked(self, frame: bytes) -> bytes:
        return zstandard.decompress(frame)

    def packed(self, content: bytes) -> bytes:
        return zstandard.compress(content)

    def end_of(self, base: bytes, found: Manifest) -> bytes:
        return found.end_frame

    def end_frame(self, end: bytes) -> bytes:
        return end

    def ending(self, fields: dict[str, Any], end: bytes, before: int, closing: int) -> bytes:
        tables: dict[str, Any] = {"metadata": {}, "member_count": 0, "payload_bytes": 0}
        tables |= {"page_digests": b"", "frame_digests": b""}
        tables |= {name: fields[name] for name in ("page_sizes", "frame_sizes")}
        sizes = [n if isinstance(n, int) and 0 <= n < 2**32 else 0 for n in _list(fields)]
        sizes = [*sizes, *(0 for _ in tables["frame_sizes"])][: len(tables["frame_sizes"])]
        made = Manifest(**tables, frame_tar_sizes=sizes, end_frame=end)
        return end + seek_table(made, closing, 0)


def _list(fields: dict[str, Any]) -> list[Any]:
    sizes = fields["frame_tar_sizes"]
    return sizes if isinstance(sizes, list) else []


class ZipTarget(FormTarget):
    """`.zip`."""

    name = "archive-zip"
    form = "zip"

    def end_of(self, base: bytes, found: Manifest) -> bytes:
        place = directory_place(InMemory(base))
        assert place is not None
        return base[place[0] : place[1]]

    def ending(self, fields: dict[str, Any], end: bytes, before: int, closing: int) -> bytes:
        count = fields["member_count"]
        count = count if isinstance(count, int) and 0 <= count < 2**64 else 0
        return trailer(closing) + end + end_records(count, len(end), before + closing + 16)


class ParquetTarget(FormTarget):
    """`.parquet`; forged ends too reach the library that reads them."""

    name = "archive-parquet"
    form = "parquet"
    share = 1

    def end_of(self, base: bytes, found: Manifest) -> bytes:
        start = footer_place(InMemory(base))
        assert start is not None
        return base[start:]

    def ending(self, fields: dict[str, Any], end: bytes, before: int, closing: int) -> bytes:
        return trailer(closing) + end


class LineTarget(Target):
    """One line of a `.jsonl.zst`. What is accepted is, packed again, the same member."""

    name = "line"
    share = 5

    @cached_property
    def valid(self) -> Sequence[bytes]:
        archive = LinesTarget(self.folder).valid[1]
        found = Archive(InMemory(archive)).manifest
        assert found is not None
        text = zstandard.decompress(archive[: found.frames()[0].size_bytes])
        return [line + b"\n" for line in text.split(b"\n") if line]

    def put(self, data: bytes) -> bool:
        try:
            line = decode_line(data)
        except ValueError:
            return False
        assert decode_line(encode_line(line)) == line
        return True
