"""The command `verify`: whether archives still are what was stored, and what proves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.archives.foreign import ForeignArchive, verify_whole
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.memory_budget import DEFAULT_MEMORY_BYTES
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.cli import console
from fuploader_dagster.cli.archives import (
    MemoryOption,
    ThreadsOption,
    open_archive,
    report_and_exit,
)
from fuploader_dagster.cli.words import counted, size
from fuploader_dagster.delivery.find_archive import FoundArchive
from fuploader_dagster.errors import DamagedArchive, DamagedData, StoreRefused, TooLarge


def verify(
    archives: Annotated[
        list[str], typer.Argument(metavar="ARCHIVE...", help="Paths, addresses or partition keys.")
    ],
    *,
    threads: ThreadsOption = 4,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Read whole archives and compare every byte with what was recorded when it was written."""
    verdicts = [
        _verify(archive, threads, config, pipeline_name, max_memory) for archive in archives
    ]
    if as_json:
        console.print_json(verdicts)
    for verdict in verdicts:
        if not as_json and verdict.proof:
            console.say(f"{verdict.archive}: {verdict.proof}")
    report_and_exit(
        [damage for verdict in verdicts for damage in verdict.damages],
        [verdict.refused for verdict in verdicts if verdict.refused],
        [f"{v.archive}: {v.unproven}" for v in verdicts if v.unproven],
    )


@dataclass(frozen=True)
class Verdict:
    """What a verification found; its fields are the keys of `--json`."""

    archive: str
    members: int
    size_bytes: int
    proof: str
    """What was compared; empty if that did not prove the archive whole."""
    damages: Sequence[Damage]
    refused: str = ""
    """Why nothing could be compared: there is no such archive, or nothing is known about it."""
    unproven: str = ""
    """Why the archive is not proven although it shows no damage; `proof` is then empty."""
    unproven_members: int = 0
    unproven_names: Sequence[str] = ()
    """The first hundred."""


def _verify(
    target: str, threads: int, config: Path | None, pipeline_name: str | None, max_memory: int
) -> Verdict:
    """The verdict on one archive; damage does not raise, so that the others are verified too."""
    try:
        with open_archive(target, config, pipeline_name, max_memory) as (archive, found):
            return _verdict(archive, found, threads)
    except DamagedData as error:
        return Verdict(target, 0, 0, "", [Damage(str(error))])
    except (StoreRefused, ForeignArchive, TooLarge) as error:
        return Verdict(target, 0, 0, "", (), str(error))


def _verdict(archive: Archive, found: FoundArchive, threads: int) -> Verdict:
    try:
        with console.bytes_bar("verifying") as progress:
            report = archive.verify(threads=threads, progress=progress)
    except ForeignArchive as error:
        _compare_with_receipt(found, "unpack what you can with the program that made it")
        if found.sha256 is None:
            raise ForeignArchive(
                f"{error.message}; nothing is known here to compare it with",
                hint="name it by its partition key, or by its address in the store, which keeps "
                "the digest",
            ) from None
        proof = _proof_as_a_whole(found, found.sha256)
        return Verdict(found.source.address, 0, found.source.size_bytes, proof, ())
    what = (archive.address, report.members, report.size_bytes)
    unproven = report.unproven
    if damages := [*_other_than_stored(found, report.damages), *report.damages]:
        return Verdict(*what, "", damages)
    if unproven.count and found.sha256 is not None:
        return Verdict(*what, _proof_as_a_whole(found, found.sha256), ())
    if unproven.count:
        return Verdict(
            *what,
            "",
            (),
            unproven=f"no damage shows in {counted(report.members, 'member')}, but {unproven}",
            unproven_members=unproven.count,
            unproven_names=unproven.names,
        )
    by = (
        "every byte is as it was written"
        if report.has_digests
        else "no damage by the checksums of zstd; there is no manifest to compare with"
    )
    members = counted(report.members, "member")
    return Verdict(*what, f"{members}, {size(report.size_bytes)}: {by}", ())


def _proof_as_a_whole(found: FoundArchive, sha256: str) -> str:
    """Compare the SHA-256 of the whole archive. Raises `DamagedArchive` if it is another."""
    with console.bytes_bar("verifying as a whole") as progress:
        verify_whole(found.source, sha256, progress)
    return f"{size(found.source.size_bytes)}, as a whole: as it was stored"


def _other_than_stored(found: FoundArchive, damages: Sequence[Damage]) -> Sequence[Damage]:
    """The archive may be another than the receipt's, also without damage in itself."""
    intact = "`fuploader restore` unpacks what is intact"
    try:
        _compare_with_receipt(found, intact if damages else "find out who replaced it")
    except DamagedArchive as error:
        return [Damage(str(error))]
    return []


def _compare_with_receipt(found: FoundArchive, hint: str) -> None:
    """Raise `DamagedArchive` if size or digest are not those of the receipt."""
    stated = getattr(found.source, "sha256", None)
    size = found.source.size_bytes
    if found.size_bytes not in (None, size) or (
        None not in (stated, found.sha256) and stated != found.sha256
    ):
        raise DamagedArchive(
            f"{found.source.address} is not the object that was confirmed: it has "
            f"{size} bytes and SHA-256 {stated}, the receipt says {found.size_bytes} and "
            f"{found.sha256}",
            hint=hint,
        )
