"""What FUploader left, taken over whole: after each input everything that lay there must be
somewhere still, and no exception of another kind may have stopped the take-over."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import msgspec
import zstandard

from fuploader_dagster.intake.leftovers import ADOPTED_SLOT
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots import index
from fuploader_dagster.slots.sealing import SEAL_NAME, make_seal
from fuploader_dagster.takeover.former_redis import Value, read_keys
from fuploader_dagster.takeover.plan import Left, LeftDirectory, is_waiting, plan
from fuploader_dagster.takeover.run import take_over
from tests.fuzz.target import Target
from tests.settings import pipeline

PREFIX = "t:meta:n:"


class FormerKeysTarget(Target):
    """Keys in Redis, as its client gives them: a line for each, with its type and its parts."""

    name = "former-keys"
    share = 4

    @cached_property
    def valid(self) -> Sequence[bytes]:
        return [
            b"st:meta:n:slot:0:active_dir\0dir-000002\n"
            b"st:meta:n:slot:0:active_count\0" + b"3\n"
            b"lt:meta:n:sealed_ready\0slot-0:dir-000001\0" + b"0:slot_0_1\n"
            b"st:meta:n:pack_lock:slot-0:dir-000001\0token",
            b"ht:meta:n:slot:1\0active_dir_id\0slot_1_4\0active_count\0" + b"2\n"
            b"lt:meta:n:queue:ready\0" + b"1:slot_1_3",
        ]

    def put(self, data: bytes) -> bool:
        dump: dict[str, Value] = {}
        for line in data.split(b"\n"):
            key, *parts = line[1:].decode("utf-8", "replace").split("\0")
            if line[:1] == b"s":
                dump[key] = "".join(parts)
            elif line[:1] == b"l":
                dump[key] = parts
            elif line[:1] == b"h":
                dump[key] = dict(zip(parts[::2], parts[1::2], strict=False))
        keys = read_keys(PREFIX, dump)
        named = list(keys.directories())
        assert all(is_waiting(f"sealed/slot-{slot}/{name}", [keys]) for slot, name in named)
        root = Path("/root")
        here = LeftDirectory(root / "slot_0_1", "slot_0_1", "flat")
        forgotten = plan(Left(root, (here,), keys=(keys,))).forget
        assert {key for key in forgotten if not key.startswith(PREFIX)} == set()
        return bool(named)


class _OnDisk(Target):
    """Something below FUploader's storage root."""

    @contextmanager
    def left(self) -> Iterator[tuple[Path, Pipeline]]:
        """An empty storage root, and a pipeline that is pointed at it."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            (folder / "data").mkdir()
            yield folder / "data", pipeline(folder)
        finally:
            shutil.rmtree(folder)


class FormerNamesTarget(_OnDisk):
    """Names of files in a directory, a line for each: any bytes that the disk takes."""

    name = "former-names"
    share = 2

    @cached_property
    def valid(self) -> Sequence[bytes]:
        names = ["a.json", "below/b.json", "字~2.json", "\\xff", ".hidden", "index", "x" * 250]
        return ["\n".join(names).encode(), b"\xff.bin\n\xfe/\xff\n \\"]

    def put(self, data: bytes) -> bool:
        names = data.split(b"\n")
        with self.left() as (root, settings):
            written = set()
            for number, name in enumerate(names):
                if _makes(root / "slot_0_0", name, b"%d" % number):
                    written.add(sha256(b"%d" % number).digest())
            found = set()
            for slot in take_over(settings, stopped=True):
                for entry in slot.entries():
                    content = (slot.directory / "files" / entry.name).read_bytes()
                    assert sha256(content).digest() == entry.sha256
                    found.add(entry.sha256)
            assert found == written
        return len(written) == len(names)


def _makes(folder: Path, name: bytes, content: bytes) -> bool:
    """Whether a new file of that name can be made there."""
    folder.mkdir(exist_ok=True)
    path = folder / name.decode("utf-8", "surrogateescape")
    if ".." in path.parts or not path.is_relative_to(folder):
        return False
    with suppress(OSError, ValueError):  # too long, empty, a NUL, below a file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
        return True
    return False


class FormerArchiveTarget(_OnDisk):
    """An archive without its directory, of the kind that the first byte says by its ending."""

    name = "former-archive"
    share = 2
    ENDINGS = (".tar.zst", ".7z", ".zip", ".tar.gz", ".tar.xz", ".tar.bz2")

    @cached_property
    def valid(self) -> Sequence[bytes]:
        seven_zip = b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(4) + (7).to_bytes(8, "little")
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("a.json", b"{}")
        made = [
            zstandard.compress(_tar()),
            seven_zip + bytes(12) + b"content",
            zipped.getvalue(),
            gzip.compress(_tar(), mtime=0),
            lzma.compress(_tar()),
            bz2.compress(_tar()),
        ]
        return [bytes([kind]) + content for kind, content in enumerate(made)]

    def put(self, data: bytes) -> bool:
        ending = self.ENDINGS[data[0] % len(self.ENDINGS)] if data else ".rar"
        content = data[1:]
        with self.left() as (root, settings):
            (root / f"slot_0_1{ending}").write_bytes(content)
            sealed = take_over(settings, stopped=True)
            kept = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
            assert content in kept or not _holds_anything(content)
        return bool(sealed)


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("slot_0_1/a.json", "slot_0_1/below/字.json"):
            info = tarfile.TarInfo(name)
            info.size = 40
            tar.addfile(info, io.BytesIO(b"x" * 40))
    return file.getvalue()


def _holds_anything(content: bytes) -> bool:
    """Whether there is more than folders in an archive, as other programs read it."""
    stream = zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True)
    with tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
        return any(not member.isdir() for member in tar)


class FormerNotesTarget(_OnDisk):
    """What an earlier take-over wrote down before it died: origin.json, taken-over.jsonl and, where
    it had come so far, seal.json."""

    name = "former-notes"
    share = 2
    _SPLIT = b"--split--"
    _CONTENT = b"what must not be lost"

    @cached_property
    def valid(self) -> Sequence[bytes]:
        origin = json.dumps({"source": "slot_0_1", "kind": "flat", "maybe_stored": False}).encode()
        lines = b"".join(
            json.dumps({"source": source, "partition": partition, "files": 1, "at": ""}).encode()
            + b"\n"
            for source, partition in (
                ("slot_0_0", f"20261121T030405678Z-local-s{ADOPTED_SLOT}-000007"),
                ("slot_0_9", ""),
            )
        )
        seal = make_seal(
            pipeline(self.folder),
            slot=ADOPTED_SLOT,
            number=1,
            slot_format="files",
            messages=1,
            payload_bytes=len(self._CONTENT),
            index_content=self._index,
            reason="adopted",
            now=1.0,
        )
        parts = [origin, lines, msgspec.json.encode(seal)]
        return [self._SPLIT.join(parts), self._SPLIT.join([*parts[:2], b""])]

    @cached_property
    def _index(self) -> bytes:
        digest = sha256(self._CONTENT).digest()
        return index.whole_index([index.record(b"a.json", 0, 0, len(self._CONTENT), digest)])

    def put(self, data: bytes) -> bool:
        origin, lines, seal, *_ = [*data.split(self._SPLIT, 2), b"", b""]
        with self.left() as (root, settings):
            staged = settings.layout.root / "adopting" / f"slot-{ADOPTED_SLOT}" / "dir-000001"
            (staged / "files").mkdir(parents=True)
            (staged / "files" / "a.json").write_bytes(self._CONTENT)
            (staged / "origin.json").write_bytes(origin)
            (settings.layout.root / "taken-over.jsonl").write_bytes(lines)
            if seal:
                (staged / "index").write_bytes(self._index)
                (staged / SEAL_NAME).write_bytes(seal)
            try:
                return bool(take_over(settings, stopped=True))
            finally:
                kept = [path for path in root.rglob("a.json") if path.is_file()]
                assert [path.read_bytes() for path in kept] == [self._CONTENT]
