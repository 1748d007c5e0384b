"""Commands that read archives: `ls`, `cat`, `verify`, `restore`."""

from __future__ import annotations

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
    OnlyPipelineOption,
    bytes_bar,
    complain,
    complain_of_each,
    one_pipeline,
    print_json,
    say,
)
from fuploader_dagster.cli.exit_codes import DAMAGED, REFUSED, UNPROVEN
from fuploader_dagster.delivery.find_archive import FoundArchive, find_archive, is_partition
from fuploader_dagster.errors import DamagedArchive, DamagedData, StoreRefused, TooLarge
from fuploader_dagster.settings.loading import CONFIG_VARIABLE, DEFAULT_FILE, load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

_WITHOUT_CHECKSUM = "its zstd frame has no checksum, and the archive no manifest with digests"

ArchiveArgument = Annotated[
    str,
    typer.Argument(
        metavar="ARCHIVE", help="Path, address such as s3://bucket/key, or partition key."
    ),
]
MemoryOption = Annotated[
    int,
    typer.Option(
        "--max-memory",
        min=1,
        help="Maximum bytes of memory for any piece of the archive and for its list of members.",
    ),
]
ThreadsOption = Annotated[
    int, typer.Option(min=1, help="Number of parts of the archive to read at once.")
]


def ls(
    archive: ArchiveArgument,
    pattern: Annotated[str, typer.Argument(help="Only names that match: *, ?, [...].")] = "*",
    *,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: ConfigOption = None,
    pipeline_name: OnlyPipelineOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the members of an archive in their order, with their sizes.

    If the archive has a manifest, only that is read. Links, devices and sparse files have no size;
    what they are follows their name.
    """
    with _opened(archive, config, pipeline_name, max_memory) as (opened, _):
        listing = opened.listing()
        members = [m for m in listing.members if fnmatchcase(m.name, pattern)]
        others = [one for one in listing.others if fnmatchcase(one.name, pattern)]
        if pattern != "*" and not (members or others or listing.damages):
            raise no_match(opened.address, pattern)
        if as_json:
            print_json(
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
        str | None, typer.Argument(help="Name of the member. Without it: the archive itself.")
    ] = None,
    *,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: ConfigOption = None,
    pipeline_name: OnlyPipelineOption = None,
) -> None:
    """Write one member to stdout, verified.

    Only the part of the archive that holds it is read. If nothing proves its bytes, stderr says so.
    """
    out = sys.stdout.buffer
    if member is None:
        found = _find(archive, config, pipeline_name)
        source = ReadAhead(found.source)
        for offset in range(0, source.size_bytes, 2**20):
            out.write(source.read(offset, 2**20))
    else:
        with _opened(archive, config, pipeline_name, max_memory) as (opened, _):
            for piece in opened.stream(member):
                out.write(piece)
            if member in opened.unproven.names:
                complain(f"unproven: nothing proves the bytes of {member!r}: {_WITHOUT_CHECKSUM}")
    out.flush()


def verify(
    archives: Annotated[
        list[str], typer.Argument(metavar="ARCHIVE...", help="Paths, addresses or partition keys.")
    ],
    *,
    threads: ThreadsOption = 4,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: ConfigOption = None,
    pipeline_name: OnlyPipelineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read whole archives and compare every byte with what was recorded when it was written."""
    verdicts = [
        _verify(archive, threads, config, pipeline_name, max_memory) for archive in archives
    ]
    if as_json:
        print_json([asdict(verdict) for verdict in verdicts])
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
    folder: Annotated[
        Path, typer.Argument(help="Folder to unpack into; created if it is missing.")
    ],
    *,
    only: Annotated[str | None, typer.Option(help="Only names that match: *, ?, [...].")] = None,
    threads: ThreadsOption = 4,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: ConfigOption = None,
    pipeline_name: OnlyPipelineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unpack an archive; of a damaged one, what is intact.

    Never writes outside the folder or over an existing file.
    """
    with (
        _opened(archive, config, pipeline_name, max_memory) as (opened, _),
        bytes_bar("restoring") as progress,
    ):
        report = opened.restore(folder, only, threads=threads, progress=progress)
    if as_json:
        print_json({"archive": opened.address, **asdict(report)})
    else:
        say(_summary(report, folder))
    if report.unproven.count:
        complain(f"unproven: {report.unproven}; check the archive with `fuploader verify`")
    _report(report.damages, report.refused)


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
    """The verdict on one archive. Nothing is raised, so that the others are verified too."""
    try:
        with _opened(target, config, pipeline_name, max_memory) as (opened, found):
            try:
                with bytes_bar("verifying") as progress:
                    report = opened.verify(threads=threads, progress=progress)
            except ForeignArchive as error:
                _compare_with_receipt(found, "unpack what you can with the program that made it")
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
        else "no damage by the checksums of zstd; there is no manifest to compare with"
    )
    return Verdict(
        opened.address, report.members, report.size_bytes, "" if damages else proof, damages
    )


def _contradictions(found: FoundArchive, damages: Sequence[Damage]) -> Sequence[Damage]:
    """Whether the object is another than the receipt's, besides the damage in it."""
    intact = "`fuploader restore` unpacks what is intact"
    try:
        _compare_with_receipt(found, intact if damages else "find out who replaced it")
    except DamagedArchive as error:
        return [Damage(str(error))]
    return []


def _verify_foreign(found: FoundArchive, error: ForeignArchive) -> Verdict:
    source = found.source
    if found.sha256 is None:
        raise ForeignArchive(
            f"{error.message}; nothing is known here to compare it with",
            hint="name the archive by its partition key, or by its address in the store, which has "
            "the digest",
        )
    with bytes_bar("verifying") as progress:
        verify_whole(source, found.sha256, progress)
    proof = f"{source.size_bytes:,} bytes, as a whole: as it was stored"
    return Verdict(source.address, 0, source.size_bytes, proof, ())


def _compare_with_receipt(found: FoundArchive, hint: str) -> None:
    """Raise `DamagedArchive` if the object is not the receipt's, however whole it is."""
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


@contextmanager
def _opened(
    target: str, config: Path | None, pipeline_name: str | None, max_memory: int
) -> Iterator[tuple[Archive, FoundArchive]]:
    found = _find(target, config, pipeline_name)
    with Archive.open(found.source, memory_bytes=max_memory) as archive:
        yield archive, found


def _find(target: str, config: Path | None, pipeline_name: str | None) -> FoundArchive:
    return find_archive(target, _pipelines(target, config, pipeline_name))


def _pipelines(target: str, config: Path | None, name: str | None) -> dict[str, Pipeline]:
    """The pipelines that may know the archive. A path needs none, an address works without."""
    if name is not None:
        return {name: one_pipeline(config, name)}
    if is_partition(target):
        return load_pipelines(config)
    configured = config or CONFIG_VARIABLE in os.environ or Path(DEFAULT_FILE).exists()
    return load_pipelines(config) if "://" in target and configured else {}


def _summary(report: RestoreReport, folder: Path) -> str:
    unchanged = f"; {report.unchanged:,} of them were there before" if report.unchanged else ""
    return f"{folder} has {report.restored:,} members, {report.size_bytes:,} bytes{unchanged}"


def _report(
    damages: Sequence[Damage], refused: Sequence[str], unproven: Sequence[str] = ()
) -> None:
    """Say what went wrong and leave with its exit code."""
    complain_of_each("damaged", damages)
    complain_of_each("refused", refused)
    complain_of_each("unproven", unproven)
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
