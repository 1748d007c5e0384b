"""Archives that somebody made to do harm: an error of ours, in little memory and time.

Their digests are right, as a forger makes them. Each is read in every way by a process of its own,
which may take half a gigabyte more than it has.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import tarfile
import traceback
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import zstandard

from fuploader_dagster.archives import manifest as form
from fuploader_dagster.archives import manifest_pages
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.seek_table import seek_table
from fuploader_dagster.disk.tar_headers import END, member_header, padding
from fuploader_dagster.errors import DamagedArchive, StoreRefused, TooLarge

GIB = 1 << 30
ROOM_BYTES = GIB // 2
MEMORY_BYTES = 32 << 20
PATIENCE_SECONDS = 300
"""For a machine that does a hundred other things; each takes some seconds at most."""


def packed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(content)


def bomb(size: int, head: bytes = b"", tail: bytes = b"", *, states_size: bool = True) -> bytes:
    """A frame of zeros, made in pieces."""
    made = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj(
        size=size if states_size else -1
    )
    parts = [made.compress(head)]
    left = size - len(head) - len(tail)
    while left:
        step = min(left, 1 << 24)
        parts.append(made.compress(bytes(step)))
        left -= step
    return b"".join([*parts, made.compress(tail), made.flush()])


def half(content: bytes) -> bytes:
    return sha256(content).digest()[:16]


def page(
    sizes: Sequence[int] = (1,),
    distances: Sequence[int] = (0,),
    header_blocks: Sequence[int] = (1,),
    names: Sequence[str] = ("a",),
    digests: bytes | None = None,
    *,
    headers: list[str] | None = None,
) -> bytes:
    columns = manifest_pages.Page(
        names=list(names),
        sizes=list(sizes),
        distances=list(distances),
        header_blocks=list(header_blocks),
        digests=half(b"x") * len(names) if digests is None else digests,
        headers=headers,
    )
    return packed(msgspec.msgpack.encode(columns))


GOOD_FRAME = packed(member_header("a", 1) + b"x" + padding(1))


def built(
    *pages: bytes,
    frames: Sequence[bytes] = (GOOD_FRAME,),
    tar_sizes: Sequence[int] = (1024,),
    members: int = 1,
) -> bytes:
    end = packed(END)
    what = form.Manifest(
        metadata={},
        member_count=members,
        payload_bytes=0,
        page_sizes=[len(one) for one in pages],
        page_digests=b"".join(map(half, pages)),
        frame_sizes=[len(frame) for frame in frames],
        frame_tar_sizes=list(tar_sizes),
        frame_digests=b"".join(map(half, frames)),
        end_frame=end,
    )
    body = packed(msgspec.msgpack.encode(what))
    body = b"FUPLMAN\x01" + sha256(body).digest() + body
    manifest = struct.pack("<II", form.MANIFEST_MAGIC, len(body)) + body
    closing = manifest_pages.pages_frame(list(pages)) + manifest + end
    return b"".join(frames) + closing + seek_table(what, len(manifest))


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def pax_flood() -> bytes:
    """Half a gigabyte of extended headers in front of one member."""
    value = b"v" * (2**20 - 600)
    record = b"%d k=" % (len(value) + 11)
    record += value[: len(value) + 11 - len(record) - 1] + b"\n"
    one = tar_header("x", len(record), tarfile.XHDTYPE) + record + padding(len(record))
    made = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj()
    parts = [made.compress(one) for _ in range(GIB // 2 // len(one))]
    parts += [made.compress(tar_header("a", 0) + END), made.flush()]
    return b"".join(parts)


def many_headers() -> bytes:
    """A tar of more empty files than there is memory for a list of them."""
    made = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj()
    some = tar_header("a", 0) * 10_000
    parts = [made.compress(some) for _ in range(15)]
    return b"".join([*parts, made.compress(END), made.flush()])


MILLIONS = 5_000_000

EVIL: dict[str, Callable[[], bytes]] = {
    "a negative distance": lambda: built(page(distances=[-5])),
    "a place of 2^61": lambda: built(page(distances=[1 << 52])),
    "a place beyond 64 bits": lambda: built(page(distances=[1 << 62])),
    "a negative size": lambda: built(page(sizes=[-700])),
    "a size of 2^60": lambda: built(page(sizes=[1 << 60])),
    "a size beyond the frames": lambda: built(page(sizes=[600])),
    "a header of 2^59 bytes": lambda: built(page(header_blocks=[1 << 50])),
    "a negative header": lambda: built(page(header_blocks=[-3])),
    "no header": lambda: built(page(header_blocks=[0])),
    "no frames": lambda: built(page(), frames=[], tar_sizes=[]),
    "members that overlap": lambda: built(
        page([1, 1], [0, 0], [1, 1], ["a", "b"]), tar_sizes=[1024], members=2
    ),
    "too few digests": lambda: built(page(digests=b"")),
    "too few headers": lambda: built(page(headers=[])),
    "headers that the member does not have": lambda: built(page(headers=['{"cmd":"64"}'])),
    "headers that are no JSON": lambda: built(page(headers=["{" * 10_000])),
    "headers of 10 MB": lambda: built(page(headers=["{" * 10_000_000])),
    "five million members of nothing": lambda: built(
        page([0] * MILLIONS, [1] * MILLIONS, [1] * MILLIONS, [""] * MILLIONS, bytes(16 * MILLIONS)),
        members=MILLIONS,
    ),
    "five million members, and one stated": lambda: built(
        page([0] * MILLIONS, [1] * MILLIONS, [1] * MILLIONS, [""] * MILLIONS, bytes(16 * MILLIONS))
    ),
    "a page of 3 GiB": lambda: built(bomb(3 * GIB)),
    "a page that states no size": lambda: built(bomb(GIB, states_size=False)),
    "a frame of 1.5 GiB": lambda: built(
        page(sizes=[3 * GIB // 2 - 512]), frames=[bomb(3 * GIB // 2)], tar_sizes=[3 * GIB // 2]
    ),
    "a frame of more than zstd can hold": lambda: built(
        page(sizes=[2**32 - 1024]), tar_sizes=[2**32 - 512]
    ),
    "extended headers without end": pax_flood,
    "more members than fit into memory": many_headers,
    "a seek table of four billion frames": lambda: (
        os.urandom(1000)
        + struct.pack("<II", 0x184D2A5E, 9)
        + struct.pack("<IBI", 0xFFFFFFFF, 0, 0x8F92EAB1)
    ),
    "a window of 2 GiB": lambda: b"\x28\xb5\x2f\xfd\x04\xa8" + b"\0" * 20,
}


def read_in_every_way(path: Path, folder: Path) -> None:
    """Each may raise what a user can be told; anything else is the test's failure."""
    ours = (DamagedArchive, StoreRefused, TooLarge)

    def attempt(action: Callable[[Archive], object]) -> None:
        with Archive.open(path, memory_bytes=MEMORY_BYTES) as archive:
            try:
                action(archive)
            except ours as error:
                assert str(error)

    attempt(lambda archive: archive.listing())
    attempt(lambda archive: archive.names())
    attempt(lambda archive: [None for _ in archive.stream("a")])
    attempt(lambda archive: [None for _ in archive.payloads(lambda name: name == "b")])
    attempt(lambda archive: archive.verify(threads=1))
    attempt(lambda archive: archive.restore(folder / "out", "nothing*", threads=1))


@pytest.mark.parametrize("evil", EVIL)
def test_an_evil_archive_is_an_error_of_ours_in_little_memory(evil: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.tar.zst"
    path.write_bytes(EVIL[evil]())
    in_little_memory(lambda: read_in_every_way(path, tmp_path))
    assert not list(tmp_path.rglob("a"))


def in_little_memory(action: Callable[[], object], room_bytes: int = ROOM_BYTES) -> None:
    """Do it in a process that may take only so much more memory than it has."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(PATIENCE_SECONDS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + room_bytes, used + room_bytes))
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_sound_archive_built_the_same_way_is_read(tmp_path: Path) -> None:
    """Else the table would prove nothing."""
    path = tmp_path / "good.tar.zst"
    path.write_bytes(built(page()))
    with Archive.open(path) as archive:
        assert archive.read("a") == b"x"
        assert archive.verify().damages == []


def test_the_limit_can_be_lifted_and_its_error_says_how(tmp_path: Path) -> None:
    path = tmp_path / "large.tar.zst"
    size = 96 << 20
    content = member_header("a", size) + bytes(size)
    path.write_bytes(
        built(
            page(sizes=[size], digests=half(bytes(size))),
            frames=[packed(content)],
            tar_sizes=[len(content)],
        )
    )
    with Archive.open(path, memory_bytes=64 << 20) as archive:
        with pytest.raises(TooLarge, match="--max-memory"):
            archive.read("a")
        with pytest.raises(TooLarge, match="--max-memory"):
            archive.verify()
        assert "--max-memory" in archive.restore(tmp_path / "out").refused[0]
    with Archive.open(path) as archive:
        assert archive.read("a") == bytes(size)
        assert archive.verify().members == 1
