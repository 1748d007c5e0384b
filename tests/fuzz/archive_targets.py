"""Archives, ours and others', as they lie in a store."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from fuploader_dagster.archives import manifest, manifest_pages
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.tar_scan import scan
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.errors import FuploaderError
from tests.fuzz.mutation import Edit, mutated
from tests.fuzz.target import Target
from tests.unit.archives.archives import InMemory, headers_for, payloads, segment

MEMORY_BYTES = 2**26


class ArchiveTarget(Target):
    """Archives, ours and others', read in every way. `repaired` changes the manifest, or the tar
    stream inside of the compression."""

    name = "archive"
    share = 17

    @cached_property
    def valid(self) -> Sequence[bytes]:
        some = {name: payloads(3)[name][:900] for name in payloads(3)}
        made = []
        for frame_bytes, headers in ((512, {}), (2**20, {}), (512, headers_for(some))):
            path = self.folder / f"{frame_bytes}.tar.zst"
            with segment(self.folder / "segment", some, headers) as source:
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
                    info.pax_headers = {"comment": '{"cmd":"thumb/64"}'}
                    tar.addfile(info, io.BytesIO(b"x" * 40))
                link = tarfile.TarInfo("link")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(link)
            made.append(file.getvalue())
        return [*made, _sparse_tar(self.folder)]

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        if len(data) % 2:
            tar = mutated(self._tars[len(data) % len(self._tars)], changes, self.valid)
            return zstandard.compress(_with_tar_checksums(tar))
        return self._other_manifest(changes)

    def _other_manifest(self, changes: Sequence[Edit]) -> bytes:
        def change(fields: dict[str, Any], page: dict[str, Any]) -> None:
            for kind, place, value in changes:
                change_one(page if kind % 2 else fields, place, value)

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
        closing = manifest_pages.pages_frame([packed]) + changed + end
        return frames + closing + struct.pack("<II", 0x184D2A5E, len(body)) + body

    def put(self, data: bytes) -> bool:
        for _ in scan(InMemory(data), memory_bytes=MEMORY_BYTES):
            pass
        for name in ("empty.json", "last.json", "a.json", "nobody"):
            # By one page alone, as `cat` does: a listing would find it damaged as a whole first.
            with Archive(InMemory(data), memory_bytes=MEMORY_BYTES) as archive:
                with suppress(FuploaderError):
                    archive.read(name)
                with suppress(FuploaderError):
                    archive.names()
        with Archive(InMemory(data), memory_bytes=MEMORY_BYTES) as archive:
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


def _sparse_tar(folder: Path) -> bytes:
    """GNU tar's own format, with a sparse file of more pieces than fit into its header."""
    with (folder / "sparse").open("wb") as file:
        for number in range(30):
            file.seek(number << 14)
            file.write(b"d" * 4096)
        file.truncate(31 << 14)
    (folder / "a.json").write_bytes(b"{}")
    command = ["tar", "--format=gnu", "-S", "-c", "-C", str(folder), "sparse", "a.json"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def _with_tar_checksums(tar: bytes) -> bytes:
    """Each block that may be a header gets the checksum of one."""
    blocks = [bytearray(tar[at : at + 512]) for at in range(0, len(tar), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def change_one(fields: dict[str, Any], place: int, value: int) -> None:
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
