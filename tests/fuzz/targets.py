"""The readers that are fuzzed: for each, valid inputs, and how an input is put to it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import struct
import tarfile
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import zstandard

from fuploader_dagster import index, manifest
from fuploader_dagster.archive import write_archive
from fuploader_dagster.archive_reader import Archive
from fuploader_dagster.dead_letters import DeadLetter, read_dead_letters
from fuploader_dagster.decoding import Decoder
from fuploader_dagster.envelope import decode_json, encode
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.failures import all_failures, note_failure
from fuploader_dagster.layout import Layout
from fuploader_dagster.loading import load_pipelines
from fuploader_dagster.receipts import Receipt, find_receipts, receipts_between
from fuploader_dagster.sealing import SEAL_NAME, SealedSlot, make_seal, read_seal
from fuploader_dagster.segment import WRITERS
from fuploader_dagster.source import Message
from fuploader_dagster.tar_scan import scan
from tests.fuzz.mutation import Edit, mutated
from tests.settings import intake
from tests.unit.archives import InMemory, payloads, segment

MAX_BYTES = 2**20
PARTITION = "20261121T030405678Z-local-s0-000001"


class Target(ABC):
    """One reader. `put` returns whether the input was accepted; it may raise errors of ours."""

    name: ClassVar[str]
    share: ClassVar[int]
    """Of each hundred inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    @abstractmethod
    def valid(self) -> Sequence[bytes]:
        """Inputs that are accepted as they are."""

    @abstractmethod
    def put(self, data: bytes) -> bool: ...

    def made(self, base: int, changes: Sequence[Edit], repaired: bool) -> bytes:
        """The input of these draws."""
        data = mutated(self.valid[base % len(self.valid)], changes, self.valid)
        return self.repaired(data, changes) if repaired else data

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        """With its checksums put right, where the format has some."""
        return data


class EnvelopeTarget(Target):
    """Bodies of messages. `repaired` changes what is inside of the base64 and the gzip."""

    name = "envelope"
    share = 35

    @cached_property
    def valid(self) -> Sequence[bytes]:
        members = gzip.compress(b'{"a":', mtime=0) + gzip.compress(b"1}", mtime=0)
        odd = {
            "file_id": 7301,
            "compression": "GZIP",
            "payload": base64.b64encode(members).decode(),
        }
        return [
            encode("7301.json", b'{"text": "some text", "n": [1, 2.5, null]}'),
            encode("text.txt", "Zeichen äöü 字".encode(), "text"),
            encode("b.bin", bytes(range(256)), "bytes"),
            json.dumps(odd).encode(),
        ]

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        try:
            fields = json.loads(self.valid[len(data) % len(self.valid)])
            packed = mutated(base64.b64decode(fields["payload"]), changes, self.valid)
            content = mutated(gzip.decompress(base64.b64decode(fields["payload"])), changes, [data])
        except ValueError:
            return data
        inner = gzip.compress(content, 1, mtime=0) if len(changes) % 2 else packed
        return json.dumps(fields | {"payload": base64.b64encode(inner).decode()}).encode()

    @cached_property
    def decoders(self) -> list[Decoder]:
        settings = {"max_unpacked_bytes": MAX_BYTES}
        return [
            Decoder(intake(self.folder, message_format=form, **settings))
            for form in ("envelope", "json", "raw")
        ]

    def put(self, data: bytes) -> bool:
        message = Message(data, 1, False, data[:20].decode("latin-1"), None)
        for decoder in self.decoders:
            (found,) = decoder.decode([message])
            assert isinstance(found, BadMessage) or len(found.content) <= max(MAX_BYTES, len(data))
        with suppress(BadMessage):
            decode_json(data).payload  # noqa: B018
        (found,) = self.decoders[0].decode([message])
        return not isinstance(found, BadMessage)


def _with_checksums(content: bytes) -> bytes:
    """An index whose header and records have the checksums that fit what stands in them."""
    head, rest = content[:12], content[16:]
    parts = [head + struct.pack("<I", zlib.crc32(head))]
    while len(rest) > 24:
        records, after = rest[24 : 24 + int.from_bytes(rest[16:20], "little")], len(rest)
        fitting = b""
        while len(records) >= 56:
            end = 56 + int.from_bytes(records[4:6], "little")
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
    share = 20

    @cached_property
    def valid(self) -> Sequence[bytes]:
        names = [b"a", "字.json".encode(), b"n" * 255]
        records = [index.record(n, 512 * i, 512, 7, bytes(32)) for i, n in enumerate(names)]
        several = index.whole_index(records) + index.commit(records[:1], 1)
        return [several, index.whole_index(records), index.header()]

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        return _with_checksums(data)

    def put(self, data: bytes) -> bool:
        found = index.read_index(data)
        assert found.end <= len(data)
        again = index.read_index(data[: found.end])
        assert again.entries == found.entries
        seen = index.identities(data, at_start=True)
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
        for slot_format, writer_class in WRITERS.items():
            directory = self.folder / f"valid-{slot_format}"
            writer = writer_class(directory)
            writer.open(lambda path: path)
            for name, content in contents.items():
                writer.add(name, content, sha256(content).digest())
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


class ArchiveTarget(Target):
    """Archives, ours and others', read in every way. `repaired` changes the manifest, or the tar
    stream inside of the compression."""

    name = "archive"
    share = 20

    @cached_property
    def valid(self) -> Sequence[bytes]:
        some = {name: payloads(3)[name][:900] for name in payloads(3)}
        made = []
        for frame_bytes in (512, 2**20):
            path = self.folder / f"{frame_bytes}.tar.zst"
            with segment(self.folder / "segment", some) as source:
                write_archive(path, source, frame_bytes=frame_bytes, metadata={"slot": "7"})
            made.append(path.read_bytes())
        return [*made, *(zstandard.compress(tar) for tar in self._tars)]

    @cached_property
    def _tars(self) -> list[bytes]:
        made = []
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=form) as tar:
                for name in ("a.json", "folder/b.json", "l" * 90):
                    long = name if form == tarfile.USTAR_FORMAT else name * 2
                    info = tarfile.TarInfo(long)
                    info.size = 40
                    tar.addfile(info, io.BytesIO(b"x" * 40))
                link = tarfile.TarInfo("link")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(link)
            made.append(file.getvalue())
        return made

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        if len(data) % 2:
            tar = mutated(self._tars[len(data) % len(self._tars)], changes, self.valid)
            return zstandard.compress(_with_tar_checksums(tar))
        return self._other_manifest(changes)

    def _other_manifest(self, changes: Sequence[Edit]) -> bytes:
        def change(fields: dict[str, Any], page: dict[str, Any]) -> None:
            for kind, place, value in changes:
                _change(page if kind % 2 else fields, place, value)

        return self.with_other_manifest(change, digests=len(changes) % 2 == 1)

    def with_other_manifest(
        self, change: Callable[[dict[str, Any], dict[str, Any]], None], *, digests: bool
    ) -> bytes:
        """A valid archive with another manifest and page. The manifest's own digest is right;
        `digests`: that of the page too."""
        archive = self.valid[0]
        found = Archive(InMemory(archive)).manifest
        assert found is not None
        frames = archive[: found.pages_offset]
        pages = archive[found.pages_offset + 8 : found.offset]
        fields = msgspec.structs.asdict(found)
        for name in ("frame_sizes", "frame_tar_sizes", "page_sizes"):
            fields[name] = list(fields[name])
        page = msgspec.msgpack.decode(zstandard.decompress(pages))
        change(fields, page)
        packed = zstandard.compress(msgspec.msgpack.encode(page))
        if digests:
            fields["page_sizes"] = [len(packed)]
            fields["page_digests"] = manifest.digest(packed)
        body = zstandard.compress(msgspec.msgpack.encode(fields))
        body = b"FUPLMAN\x01" + sha256(body).digest() + body
        changed = struct.pack("<II", manifest.MANIFEST_MAGIC, len(body)) + body
        end: bytes = fields["end_frame"]
        table = [
            *zip(found.frame_sizes, found.frame_tar_sizes, strict=True),
            (8 + len(packed), 0),
            (len(changed), 0),
            (len(end), 1024),
        ]
        body = b"".join(struct.pack("<II", *entry) for entry in table)
        body += struct.pack("<IBI", len(table), 0, 0x8F92EAB1)
        closing = manifest.pages_frame([packed]) + changed + end
        return frames + closing + struct.pack("<II", 0x184D2A5E, len(body)) + body

    def put(self, data: bytes) -> bool:
        for _ in scan(InMemory(data)):
            pass
        with Archive(InMemory(data)) as archive:
            report = archive.verify(threads=1)
            listing = archive.listing()
            archive.names()
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            try:
                archive.restore(folder / "out", threads=1)
                assert {path.name for path in folder.iterdir()} <= {"out"}
            finally:
                shutil.rmtree(folder)
            for member in listing.members[:2]:
                archive.read(member.name)
        return not report.damages


def _with_tar_checksums(tar: bytes) -> bytes:
    """Each block that may be a header gets the checksum of one."""
    blocks = [bytearray(tar[at : at + 512]) for at in range(0, len(tar), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def _change(fields: dict[str, Any], place: int, value: int) -> None:
    """Change one value, or one value in a list, to an unlikely one."""
    name = sorted(fields)[place % len(fields)]
    numbers = (0, -1, 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, value, value % 4096)
    number = numbers[value % len(numbers)]
    old = fields[name]
    if isinstance(old, list) and old:
        old[place // 7 % len(old)] = str(number) if isinstance(old[0], str) else number
        if value % 5 == 0:
            old.pop()
    elif isinstance(old, bytes):
        fields[name] = old[: value % (len(old) + 1)]
    elif isinstance(old, int):
        fields[name] = number


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


class ConfigTarget(Target):
    """fuploader.yaml."""

    name = "config"
    share = 4

    @cached_property
    def valid(self) -> Sequence[bytes]:
        parts = """
    source: {kind: rabbitmq, host: h, queue: q, heartbeat_seconds: 30}
    state: {kind: sqlite, path: data/state.sqlite}
    store: {kind: local, path: data/objects}
"""
        more = """    seal_age_seconds: 12.5
    node_id: n1
    name_fields: [a, b]
    key: '{archive}'
"""
        return [
            f"storage_root: data\npipelines:\n  docs:{parts}".encode(),
            f"process_count: 2\npipelines:\n  docs:{parts}{more}".encode(),
        ]

    def put(self, data: bytes) -> bool:
        path = self.folder / "fuploader.yaml"
        path.write_bytes(data)
        return bool(load_pipelines(path))


TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        EnvelopeTarget,
        IndexTarget,
        SlotTarget,
        ArchiveTarget,
        SealTarget,
        RecordsTarget,
        ConfigTarget,
    )
}
