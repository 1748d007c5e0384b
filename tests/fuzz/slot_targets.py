"""What lies in the pipeline's own folders: indexes, slot directories, seals, records."""

from __future__ import annotations

import shutil
import struct
import tempfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import msgspec

from fuploader_dagster.dead_letters.letters import DeadLetter, read_dead_letters
from fuploader_dagster.delivery.failures import all_failures, note_failure
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.slots import index
from fuploader_dagster.slots.formats import WRITERS
from fuploader_dagster.slots.receipts import Receipt, find_receipts, receipts_between
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot, make_seal, read_seal
from tests.fuzz.mutation import Edit
from tests.fuzz.target import Target
from tests.settings import intake

PARTITION = "20261121T030405678Z-local-s0-000001"


def _with_checksums(content: bytes) -> bytes:
    """An index whose header and records have the checksums that fit what stands in them."""
    head, rest = content[:12], content[16:]
    fixed = 58 if head[8:9] == b"\x03" else 56
    parts = [head + struct.pack("<I", zlib.crc32(head))]
    while len(rest) > 24:
        records, after = rest[24 : 24 + int.from_bytes(rest[16:20], "little")], len(rest)
        fitting = b""
        while len(records) >= fixed:
            end = fixed + int.from_bytes(records[4:6], "little")
            end += int.from_bytes(records[56:fixed], "little")
            fitting += struct.pack("<I", zlib.crc32(records[4:end])) + records[4:end]
            records = records[end:]
        fitting += records
        fields = rest[8:20] + struct.pack("<I", zlib.crc32(fitting))
        parts.append(rest[:4] + struct.pack("<I", zlib.crc32(fields)) + fields + fitting)
        rest = rest[min(after, 24 + len(fitting)) :]
    return b"".join(parts) + rest


class IndexTarget(Target):
    """Index files."""

    name = "index"
    share = 17

    @cached_property
    def valid(self) -> Sequence[bytes]:
        names = [b"a", "字.json".encode(), b"n" * 255]
        records = [index.record(n, 512 * i, 512, 7, bytes(32)) for i, n in enumerate(names)]
        several = index.whole_index(records) + index.commit(records[:1], 1)
        headers = ['{"cmd":"thumb/64"}', "", to_text({"字": "x" * 600})]
        kept = [
            index.record_with_headers(n, 512 * i, 1536, 7, bytes(32), headers[i])
            for i, n in enumerate(names)
        ]
        with_headers = index.whole_index(kept, index.WITH_HEADERS) + index.commit(kept[:1], 1)
        return [several, index.whole_index(records), index.header(), with_headers]

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        return _with_checksums(data)

    def put(self, data: bytes) -> bool:
        found = index.read_index(data)
        assert found.end <= len(data)
        again = index.read_index(data[: found.end])
        assert again.entries == found.entries
        seen = index.identities(data)
        assert [name.decode("utf-8", "surrogateescape") for name in seen.names][
            : len(found.entries)
        ] == [entry.name for entry in found.entries]
        return found.end == len(data)


class SlotTarget(Target):
    """Active directories of both formats: index and data in one input, opened as a worker does."""

    name = "segment"
    share = 8
    _SPLIT = b"--data--"

    @cached_property
    def valid(self) -> Sequence[bytes]:
        made = []
        contents = {"a.json": b"{}", "字.json": b"x" * 600, "n" * 120: b""}
        headers = to_text({"cmd": "größe", "content-type": "text/plain"})
        for slot_format, kept in [("segment", ""), ("files", ""), ("segment", headers)]:
            directory = self.folder / f"valid-{slot_format}{len(kept) or ''}"
            writer = WRITERS[slot_format](directory, keeps_headers=bool(kept))
            writer.open(lambda path: path)
            for name, content in contents.items():
                writer.add(name, content, sha256(content).digest(), kept)
            writer.commit()
            writer.close()
            data = (directory / "segment.tar").read_bytes() if slot_format == "segment" else b""
            made.append((directory / "index").read_bytes() + self._SPLIT + data)
        return made

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        content, split, tar = data.partition(self._SPLIT)
        return _with_checksums(content) + split + tar

    def put(self, data: bytes) -> bool:
        content, _, tar = data.partition(self._SPLIT)
        slot_format = "segment" if tar else "files"
        directory = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            if tar:
                (directory / "segment.tar").write_bytes(tar)
            else:
                shutil.copytree(self.folder / "valid-files" / "files", directory / "files")
            (directory / "index").write_bytes(content)
            writer = WRITERS[slot_format](directory)
            aside: list[Path] = []
            try:
                writer.open(aside.append)
            finally:
                writer.close()
            return not aside
        finally:
            shutil.rmtree(directory)


class SealTarget(Target):
    """seal.json."""

    name = "seal"
    share = 8

    @cached_property
    def valid(self) -> Sequence[bytes]:
        made = []
        for key in ("{pipeline}/{archive}", "字/{partition}"):
            seal = make_seal(
                intake(self.folder, key=key),
                slot=0,
                number=1,
                slot_format="segment",
                messages=1,
                payload_bytes=2,
                index_content=index.header(),
                segment_xxh128="0" * 32,
                reason="age",
                now=1.0,
            )
            made.append(msgspec.json.format(msgspec.json.encode(seal), indent=1))
        return made

    def put(self, data: bytes) -> bool:
        directory = self.folder / "slot-0" / "dir-000001"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SEAL_NAME).write_bytes(data)
        (directory / index.INDEX_NAME).write_bytes(index.header())
        slot = SealedSlot(directory, read_seal(directory))
        assert slot.partition.number == 1
        slot.entries()
        return True


class RecordsTarget(Target):
    """Receipts, dead letters and failures: one JSON object a line or a file."""

    name = "records"
    share = 5

    @cached_property
    def valid(self) -> Sequence[bytes]:
        receipt = Receipt(
            partition=PARTITION,
            address="s3://b/k",
            key="k",
            size_bytes=1,
            sha256="0" * 64,
            messages=1,
            payload_bytes=1,
            stored_at="2026-11-21T03:04:05+00:00",
        )
        letter = DeadLetter(
            time="2026-11-21T03:04:05+00:00",
            reason="字",
            redelivered=False,
            message_id=None,
            attributes={"headers": {"a": 1}},
            body=b"\0\1",
        )
        layout = Layout(self.folder / "records")
        note_failure(layout, PARTITION, stage="pack", error="e", now=1.0)
        (failure,) = layout.archives.glob("*.failure.json")
        lines = [msgspec.json.encode(receipt), msgspec.json.encode(letter)]
        return [*lines, failure.read_bytes()]

    def put(self, data: bytes) -> bool:
        layout = Layout(self.folder / "records")
        for folder in (layout.receipts, layout.dead_letters):
            folder.mkdir(exist_ok=True, parents=True)
        (layout.receipts / "20261121T03.jsonl").write_bytes(data)
        (layout.dead_letters / "20261121-w0.jsonl").write_bytes(data)
        (layout.archives / f"{PARTITION}.failure.json").write_bytes(data)
        found = [*find_receipts(layout, [PARTITION]), *receipts_between(layout)]
        return bool([*found, *read_dead_letters(layout), *all_failures(layout)])
