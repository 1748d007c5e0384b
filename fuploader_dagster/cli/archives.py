"""Commands that read archives: `ls`, `cat`, `verify`, `restore`.

Exit codes as in `cli`: 5 where something is damaged (what is intact comes out all the same), 4
where a member was refused or there is no such archive or member, and of `verify` 6 where nothing
was found wrong, but nothing proves the bytes either.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from fuploader_dagster.archives.foreign import ForeignArchive, verify_whole
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.manifest import MemberEntry
from fuploader_dagster.archives.memory_budget import DEFAULT_MEMORY_BYTES
from fuploader_dagster.archives.ranges import ReadAhead
from fuploader_dagster.archives.reader import Archive, no_match
from fuploader_dagster.archives.reports import RestoreReport
from fuploader_dagster.cli.console import (
    ConfigOption,
    JsonOption,
    PipelineOption,
    bytes_bar,
    complain,
    one_pipeline,
    say,
)
from fuploader_dagster.delivery.find_archive import FoundArchive, find_archive, is_partition
from fuploader_dagster.errors import DamagedArchive, DamagedData, StoreRefused, TooLarge
from fuploader_dagster.settings.loading import CONFIG_VARIABLE, DEFAULT_FILE, load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

DAMAGED, REFUSED, UNPROVEN = 5, 4, 6
_LISTED_TROUBLES = 100
_WITHOUT_CHECKSUM = "its zstd frame has no checksum, and the archive no manifest with digests"

ArchiveArgument = Annotated[
    str,
    typer.Argument(
        metavar="ARCHIVE", help="A path, an address such as s3://bucket/key, or a partition key."
    ),
]
MemoryOption = Annotated[
    int,
    typer.Option(
        "--max-memory", min=1, help="Bytes that a piece of the archive, or its list, may take."
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Parts of the archive read at once.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ls, cat, verify, restore):
        app.command()(command)


def ls(
    archive: ArchiveArgument,
    pattern: Annotated[str, typer.Argument(help="Only such names: *, ?, [...].")] = "*",
    *,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    as_json: JsonOption = False,
) -> None:
    """List an archive: sizes and names, in its order. Reads its manifest only, where it has one.

    Of links, devices and sparse files it says what they are instead of a size.
    """
    with _opened(archive, config, pipeline, max_memory) as (opened, _):
        listing = opened.listing()
        members = [m for m in listing.members if fnmatchcase(m.name, pattern)]
        others = [one for one in listing.others if fnmatchcase(one.name, pattern)]
        if pattern != "*" and not (members or others or listing.damages):
            raise no_match(opened.address, pattern)
        if as_json:
            _print_json(
                {
                    "archive": opened.address,
                    "size_bytes": opened.size_bytes,
                    "has_manifest": opened.manifest is not None,
                    "members": [_as_json(member) for member in members],
                    "others": [one._asdict() for one in others],
                    "damages": [asdict(damage) for damage in listing.damages],
                }
            )
        else:
            _print_lines(f"{m.size_bytes:>12} {in_a_line(m.name)}" for m in members)
            _print_lines(
                f"{'-':>12} {in_a_line(one.name)} ({in_a_line(one.kind)})" for one in others
            )
    _report(listing.damages, ())


def cat(
    archive: ArchiveArgument,
    member: Annotated[
        str | None, typer.Argument(help="Its name; without one: the archive itself, as it lies.")
    ] = None,
    *,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
) -> None:
    """Write one member to stdout, verified. Reads only the part of the archive that holds it.

    Where nothing proves its bytes, stderr says so.
    """
    out = sys.stdout.buffer
    if member is None:
        found = _find(archive, config, pipeline)
        source = ReadAhead(found.source)
        for offset in range(0, source.size_bytes, 2**20):
            out.write(source.read(offset, 2**20))
    else:
        with _opened(archive, config, pipeline, max_memory) as (opened, _):
            for piece in opened.stream(member):
                out.write(piece)
            if member in opened.unproven.names:
                complain(f"unproven: nothing proves the bytes of {member!r}: {_WITHOUT_CHECKSUM}")
    out.flush()


def verify(
    archives: Annotated[
        list[str], typer.Argument(metavar="ARCHIVE...", help="Paths, addresses, partition keys.")
    ],
    *,
    threads: ThreadsOption = 4,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read archives whole and compare every byte with what was recorded when it was written."""
    verdicts = [_verify(archive, threads, config, pipeline, max_memory) for archive in archives]
    if as_json:
        _print_json([asdict(verdict) for verdict in verdicts])
    for verdict in verdicts:
        if not as_json and verdict.proof:
            say(f"{verdict.archive}: {verdict.proof}")
    _report(
        [damage for verdict in verdicts for damage in verdict.damages],
        [verdict.refused for verdict in verdicts if verdict.refused],
        [f"{v.archive}: {v.unproven}" for v in verdicts if v.unproven],
    )


def restore(
    archive: ArchiveArgument,
    folder: Annotated[Path, typer.Argument(help="Where to; made if it is missing.")],
    *,
    only: Annotated[str | None, typer.Option(help="Only such names: *, ?, [...].")] = None,
    threads: ThreadsOption = 4,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unpack an archive, never outside the folder or over a file, and what is intact if damaged."""
    with (
        _opened(archive, config, pipeline, max_memory) as (opened, _),
        bytes_bar("restoring") as progress,
    ):
        report = opened.restore(folder, only, threads=threads, progress=progress)
    if as_json:
        _print_json({"archive": opened.address, **asdict(report)})
    else:
        say(_summary(report, folder))
    if report.unproven.count:
        complain(f"unproven: {report.unproven}; `fuploader verify` tells whether all of it is")
    _report(report.damages, report.refused)


@dataclass(frozen=True)
class Verdict:
    """What a verification found, for people and for programs."""

    archive: str
    members: int
    size_bytes: int
    proof: str
    """What was compared; empty if that did not prove it whole."""
    damages: Sequence[Damage]
    refused: str = ""
    """Why it could not be compared at all: it is not there, or nothing is known about it."""
    unproven: str = ""
    """Why what shows no damage is not proven either: then there is no `proof`."""
    unproven_members: int = 0
    unproven_names: Sequence[str] = ()
    """The first hundred."""


def _verify(
    target: str, threads: int, config: Path | None, pipeline: str | None, max_memory: int
) -> Verdict:
    """One that is not there keeps nobody from hearing about the others."""
    try:
        with _opened(target, config, pipeline, max_memory) as (opened, found):
            try:
                with bytes_bar("verifying") as progress:
                    report = opened.verify(threads=threads, progress=progress)
            except ForeignArchive as error:
                _compare_with_receipt(found, "unpack what can be unpacked with its own program")
                return _verify_foreign(found, error)
            damages = [*_contradictions(found, report.damages), *report.damages]
            if report.unproven.count and not damages and found.sha256 is not None:
                with bytes_bar("verifying as a whole") as progress:
                    verify_whole(found.source, found.sha256, progress)
                proof = f"{found.source.size_bytes:,} bytes, as a whole: as it was stored"
                return Verdict(opened.address, report.members, report.size_bytes, proof, ())
    except DamagedData as error:
        return Verdict(target, 0, 0, "", [Damage(str(error))])
    except (StoreRefused, ForeignArchive, TooLarge) as error:
        return Verdict(target, 0, 0, "", (), str(error))
    unproven = report.unproven
    if unproven.count and not damages:
        return Verdict(
            opened.address,
            report.members,
            report.size_bytes,
            "",
            (),
            unproven=f"no damage shows in {report.members:,} members, but {unproven}",
            unproven_members=unproven.count,
            unproven_names=unproven.names,
        )
    proof = f"{report.members:,} members, {report.size_bytes:,} bytes: " + (
        "every byte is as it was written"
        if report.has_digests
        else "no damage, by the checksums of zstd alone: it has no manifest"
    )
    return Verdict(
        opened.address, report.members, report.size_bytes, "" if damages else proof, damages
    )


def _contradictions(found: FoundArchive, damages: Sequence[Damage]) -> Sequence[Damage]:
    """What the receipt has against it, besides what is damaged in it."""
    whole = "find out who replaced it"
    try:
        _compare_with_receipt(
            found, "fuploader restore gets out what is intact" if damages else whole
        )
    except DamagedArchive as error:
        return [Damage(str(error))]
    return []


def _verify_foreign(found: FoundArchive, error: ForeignArchive) -> Verdict:
    source = found.source
    if found.sha256 is None:
        raise ForeignArchive(
            f"{error.message}; nothing is known here to compare it with",
            hint="name its partition key, or its address in the store, which keeps the digest",
        )
    with bytes_bar("verifying") as progress:
        verify_whole(source, found.sha256, progress)
    proof = f"{source.size_bytes:,} bytes, as a whole: as it was stored"
    return Verdict(source.address, 0, source.size_bytes, proof, ())


def _compare_with_receipt(found: FoundArchive, hint: str) -> None:
    """An archive that is whole may still be another one than the receipt says."""
    stated = getattr(found.source, "sha256", None)
    size = found.source.size_bytes
    if found.size_bytes not in (None, size) or (
        None not in (stated, found.sha256) and stated != found.sha256
    ):
        raise DamagedArchive(
            f"{found.source.address} is another object than the one that was confirmed: it has "
            f"{size} bytes and SHA-256 {stated}, the receipt says {found.size_bytes} and "
            f"{found.sha256}",
            hint=hint,
        )


@contextmanager
def _opened(
    target: str, config: Path | None, pipeline: str | None, max_memory: int
) -> Iterator[tuple[Archive, FoundArchive]]:
    found = _find(target, config, pipeline)
    with Archive.open(found.source, memory_bytes=max_memory) as archive:
        yield archive, found


def _find(target: str, config: Path | None, pipeline: str | None) -> FoundArchive:
    return find_archive(target, _pipelines(target, config, pipeline))


def _pipelines(target: str, config: Path | None, name: str | None) -> dict[str, Pipeline]:
    """Those that may know the archive. A path needs none; an address does without any."""
    if name is not None:
        return {name: one_pipeline(config, name)}
    if is_partition(target):
        return load_pipelines(config)
    there = config or Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_FILE))
    named = config is not None or CONFIG_VARIABLE in os.environ
    return load_pipelines(config) if "://" in target and (named or there.exists()) else {}


def _summary(report: RestoreReport, folder: Path) -> str:
    unchanged = f", {report.unchanged:,} of them were there" if report.unchanged else ""
    return f"{report.restored:,} members, {report.size_bytes:,} bytes are in {folder}{unchanged}"


def _report(
    damages: Sequence[Damage], refused: Sequence[str], unproven: Sequence[str] = ()
) -> None:
    """Say what went wrong and leave with its exit code."""
    for what, troubles in (("damaged", damages), ("refused", refused), ("unproven", unproven)):
        for trouble in troubles[:_LISTED_TROUBLES]:
            complain(f"{what}: {trouble}")
        if len(troubles) > _LISTED_TROUBLES:
            complain(f"{what}: {len(troubles) - _LISTED_TROUBLES:,} more")
    if damages or refused:
        raise typer.Exit(DAMAGED if damages else REFUSED)
    if unproven:
        raise typer.Exit(UNPROVEN)


def _as_json(member: MemberEntry) -> dict[str, Any]:
    return {
        "name": member.name,
        "size_bytes": member.size_bytes,
        "sha256_half": member.digest.hex() if member.digest else None,
        "tar_offset": member.offset,
    }


def _print_lines(lines: Iterator[str]) -> None:
    out = sys.stdout.buffer
    for line in lines:
        out.write(line.encode() + b"\n")
    out.flush()


def _print_json(value: Any) -> None:
    """Names that are no UTF-8 are kept, as escapes."""
    sys.stdout.write(json.dumps(value) + "\n")
