"""Packing a sealed slot of 10,000 messages, against `tar --zstd` and FUploader's packer.

All three read the same messages from a warm page cache: ours from the segment, the other two from
one file per message. Ours also checks every digest, syncs the archive and reads it back.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from file_uploader import tar_zstd_packer

from benchmarks.contenders import Ours
from benchmarks.documents import documents_of, name_of
from benchmarks.ground import Ground, note, ratio_of_rounds
from benchmarks.results import Row
from fuploader_dagster.delivery.pack import forget_packed, pack
from fuploader_dagster.slots.slot import SlotOwner

FILES = 10_000


def rows(ground: Ground) -> Iterator[Row]:
    files = min(FILES, ground.sizes.messages(FILES))
    documents = documents_of(2000)
    with ground.folder() as folder:
        ours = Ours(ground, folder, "never-opened", {"seal_messages": files}).pipeline
        plain = folder / "files"
        plain.mkdir()
        with SlotOwner(ours.intake(), 0) as slot:
            for number in range(files):
                slot.add(name_of(number), documents.content(number))
                (plain / name_of(number)).write_bytes(documents.content(number))
            sealed = slot.seal("count")
        assert sealed is not None

        def forget() -> None:
            forget_packed(ours.layout, sealed.seal.partition, sealed.seal.archive)

        archive = folder / "tar.tar.zst"
        rounds = ground.rounds(
            "packing",
            {
                "ours": lambda: files / _timed(lambda: pack(sealed, ours), forget),
                "tar": lambda: files / _timed(lambda: _tar(plain, archive)),
                "fuploader": lambda: files / _timed(lambda: _fuploader(plain)),
            },
            ground.sizes.times(9, 5),
        )
    yield Row(
        row=f"pack {files:,} messages, against tar --zstd on the same files",
        unit="files/s",
        ours=rounds.spread(lambda one: one["ours"]),
        fuploader=rounds.spread(lambda one: one["fuploader"]),
        bare=rounds.spread(lambda one: one["tar"]),
        against="bare",
        least=1.0,
        aim=1.5,
        note=note(ratio_of_rounds(rounds.spread(lambda one: one["ours"] / one["tar"])), rounds),
    )


def _timed(work: Callable[[], object], afterwards: Callable[[], None] = lambda: None) -> float:
    os.sync()  # what the one before left unsynced would be ours to write, as we sync
    started = time.monotonic()
    work()
    seconds = time.monotonic() - started
    afterwards()
    return seconds


def _tar(folder: Path, archive: Path) -> None:
    subprocess.run(
        ["tar", "--zstd", "-cf", str(archive), "-C", str(folder.parent), folder.name], check=True
    )


def _fuploader(folder: Path) -> None:
    archive = asyncio.run(_packed(folder))
    if archive is None:
        raise RuntimeError("FUploader's packer gave no archive")
    archive.unlink()


async def _packed(folder: Path) -> Path | None:
    archive: Path | None = await tar_zstd_packer(folder)
    return archive
