"""What nothing proves is never called whole: frames without a checksum, and no digest anywhere."""

from __future__ import annotations

import asyncio
import io
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from file_uploader import tar_zstd_packer

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.repack import repack
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.errors import DamagedArchive
from tests.lives import pack_by_hand
from tests.settings import pipeline, sealed
from tests.unit.archives.archives import InMemory

FILES = {f"{n}.json": b'{"amount": %d, "text": "some words"}' % (n * n) for n in range(80)}
FLIPS = 60


def tar_file(folder: Path) -> Path:
    path = folder / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def slot(folder: Path) -> Path:
    made = folder / "slot"
    made.mkdir()
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


def by_fuploader(folder: Path) -> bytes:
    made = asyncio.run(tar_zstd_packer(slot(folder)))
    assert made is not None
    return made.read_bytes()


def by_bsdtar(folder: Path) -> bytes:
    made = folder / "b.tar.zst"
    subprocess.run(["bsdtar", "--zstd", "-cf", made, "slot"], cwd=slot(folder).parent, check=True)
    return made.read_bytes()


def by_python(folder: Path) -> bytes:
    return zstandard.ZstdCompressor().compress(tar_file(folder).read_bytes())


def by_zstd(*options: str) -> Callable[[Path], bytes]:
    def made(folder: Path) -> bytes:
        command = ["zstd", "-q", "-c", *options, str(tar_file(folder))]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

    return made


WITHOUT = {
    "fuploader": by_fuploader,
    "bsdtar": by_bsdtar,
    "python-zstandard": by_python,
    "zstd --no-check": by_zstd("--no-check"),
}


@pytest.mark.parametrize("tool", WITHOUT)
def test_an_archive_without_checksums_is_damaged_or_unproven_and_never_whole(
    tool: str, tmp_path: Path
) -> None:
    content = WITHOUT[tool](tmp_path)
    report = Archive(InMemory(content)).verify()
    assert (report.members, report.damages, report.unproven.count) == (len(FILES), [], len(FILES))
    rng = random.Random(tool)
    noticed = 0
    for _ in range(FLIPS):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        report = Archive(InMemory(bytes(changed))).verify()
        assert report.damages or report.unproven.count
        noticed += bool(report.damages)
    assert noticed < FLIPS  # or this would say nothing: some are not noticed by zstd


@pytest.mark.parametrize("options", [(), ("--rsyncable",), ("--long=27",), ("-19",)])
def test_an_archive_with_checksums_is_proven_and_each_changed_bit_of_it_is_damage(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    content = by_zstd(*options)(tmp_path)
    report = Archive(InMemory(content)).verify()
    assert (report.members, report.damages, report.unproven.count) == (len(FILES), [], 0)
    rng = random.Random(5)
    for _ in range(FLIPS):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        assert Archive(InMemory(bytes(changed))).verify().damages


def test_of_mixed_frames_only_the_members_without_a_checksum_are_unproven(tmp_path: Path) -> None:
    tar = tar_file(tmp_path).read_bytes()
    checked = zstandard.ZstdCompressor(write_checksum=True)
    cut = 1024 * 10  # ten members of two blocks
    content = checked.compress(tar[:cut])
    content += zstandard.ZstdCompressor().compress(tar[cut : 2 * cut])
    content += checked.compress(tar[2 * cut :])
    archive = Archive(InMemory(content))
    names = list(FILES)
    assert archive.verify().unproven.names == names[10:20]
    report = archive.restore(tmp_path / "out")
    assert (report.restored, report.unproven.names) == (len(FILES), names[10:20])
    archive.read(names[3])
    assert archive.unproven.names == []
    archive.read(names[13])
    assert archive.unproven.names == [names[13]]
    list(archive.payloads(lambda name: name == names[15]))
    assert archive.unproven.names == [names[15]]


def test_repacking_proves_the_whole_where_members_have_no_digests(tmp_path: Path) -> None:
    """Or the new archive would vouch for whatever came out of the old one."""
    settings = pipeline(tmp_path, packer=pack_by_hand)
    sealed(settings, FILES)
    (done,) = ship(settings, settings.store.open())
    assert isinstance(done, Done)
    assert done.receipt is not None
    built_in = pipeline(tmp_path)
    stored = tmp_path / "objects" / done.receipt.key
    content = stored.read_bytes()
    assert repack(done.receipt, lambda _: Archive.open(stored), built_in).messages == len(FILES)
    rng = random.Random(3)
    while True:
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1
        archive = Archive(InMemory(bytes(changed)))
        report = archive.verify()
        if not report.damages and report.members == len(FILES):
            break
    stored.write_bytes(changed)
    with pytest.raises(DamagedArchive, match="was stored with"):
        repack(done.receipt, lambda _: Archive.open(stored), built_in)
