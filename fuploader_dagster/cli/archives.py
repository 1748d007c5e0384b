"""Commands that read archives: `ls`, `cat`, `restore`; and how an archive is opened for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from fuploader_dagster.archives.entries import MemberEntry
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.memory_budget import DEFAULT_MEMORY_BYTES
from fuploader_dagster.archives.ranges import ReadAhead
from fuploader_dagster.archives.reader import Archive, no_match
from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import DAMAGED, REFUSED, UNPROVEN
from fuploader_dagster.cli.words import counted, size
from fuploader_dagster.delivery.find_archive import FoundArchive, find_archive, is_partition
from fuploader_dagster.disk.header_text import from_text
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
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """List the members of an archive in their order, with their sizes.

    If the archive has a manifest, only that is read. Links, devices and sparse files have no size;
    what they are follows their name.
    """
    with open_archive(archive, config, pipeline_name, max_memory) as (opened, _):
        listing = opened.listing()
        members = [m for m in listing.members if fnmatchcase(m.name, pattern)]
        others = [one for one in listing.others if fnmatchcase(one.name, pattern)]
        if pattern != "*" and not (members or others or listing.damages):
            raise no_match(opened.address, pattern)
        if as_json:
            results = opened.results()
            console.print_json(
                {
                    "archive": opened.address,
                    "size_bytes": opened.size_bytes,
                    "has_manifest": opened.manifest is not None,
                    "members": [_as_json(member, member.name in results) for member in members],
                    "others": [one._asdict() for one in others],
                    "damages": listing.damages,
                    "failures": opened.failures(),
                }
            )
        else:
            _print_lines(f"{m.size_bytes:>12} {in_a_line(m.name)}" for m in members)
            _print_lines(
                f"{'-':>12} {in_a_line(one.name)} ({in_a_line(one.kind)})" for one in others
            )
            if opened.manifest is not None and opened.manifest.failure_count:
                console.complain(
                    f"{counted(opened.manifest.failure_count, 'part')} of items without a "
                    "result; `--json` "
                    f"lists them"
                )
    report_and_exit(listing.damages, ())


def cat(
    archive: ArchiveArgument,
    member: Annotated[
        str | None, typer.Argument(help="Name of the member. Without it: the archive itself.")
    ] = None,
    *,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
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
        with open_archive(archive, config, pipeline_name, max_memory) as (opened, _):
            for piece in opened.stream(member):
                out.write(piece)
            if member in opened.unproven.names:
                console.complain(
                    f"unproven: nothing proves the bytes of {member!r}: {_WITHOUT_CHECKSUM}"
                )
    out.flush()


def restore(
    archive: ArchiveArgument,
    folder: Annotated[
        Path, typer.Argument(help="Folder to unpack into; created if it is missing.")
    ],
    *,
    only: Annotated[str | None, typer.Option(help="Only names that match: *, ?, [...].")] = None,
    threads: ThreadsOption = 4,
    max_memory: MemoryOption = DEFAULT_MEMORY_BYTES,
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Unpack an archive; of a damaged one, what is intact.

    Never writes outside the folder or over an existing file.
    """
    with (
        open_archive(archive, config, pipeline_name, max_memory) as (opened, _),
        console.bytes_bar("restoring") as progress,
    ):
        report = opened.restore(folder, only, threads=threads, progress=progress)
    if as_json:
        console.print_json({"archive": opened.address, **asdict(report)})
    else:
        before = f"; {report.unchanged:,} of them were there already" if report.unchanged else ""
        members = f"{counted(report.restored, 'member')}, {size(report.size_bytes)},"
        console.say(f"restored {members} to {folder}{before}")
    if report.unproven.count:
        console.complain(f"unproven: {report.unproven}; check the archive with `fuploader verify`")
    report_and_exit(report.damages, report.refused)


@contextmanager
def open_archive(
    target: str, config: Path | None, pipeline_name: str | None, max_memory: int
) -> Iterator[tuple[Archive, FoundArchive]]:
    """The archive that the target names, opened, and where it was found."""
    found = _find(target, config, pipeline_name)
    with Archive.open(found.source, memory_bytes=max_memory) as archive:
        yield archive, found


def _find(target: str, config: Path | None, pipeline_name: str | None) -> FoundArchive:
    return find_archive(target, _pipelines(target, config, pipeline_name))


def _pipelines(target: str, config: Path | None, name: str | None) -> dict[str, Pipeline]:
    """The pipelines that may know the archive. A path needs none, an address works without."""
    if name is not None:
        return {name: console.one_pipeline(config, name)}
    if is_partition(target):
        return console.configured(config)
    wanted = "://" in target and console.is_configured(config)
    return console.configured(config) if wanted else {}


def report_and_exit(
    damages: Sequence[Damage], refused: Sequence[str], unproven: Sequence[str] = ()
) -> None:
    """Say what went wrong and leave with its exit code."""
    console.complain_of_each("damaged", damages)
    console.complain_of_each("refused", refused)
    console.complain_of_each("unproven", unproven)
    if damages or refused:
        raise typer.Exit(DAMAGED if damages else REFUSED)
    if unproven:
        raise typer.Exit(UNPROVEN)


def _as_json(member: MemberEntry, is_result: bool) -> dict[str, Any]:
    headers = {"headers": from_text(member.headers)} if member.headers else {}
    return {
        "name": member.name,
        "is_result": is_result,
        "size_bytes": member.size_bytes,
        "sha256_half": member.digest.hex() if member.digest else None,
        "tar_offset": member.offset,
        **headers,
    }


def _print_lines(lines: Iterator[str]) -> None:
    out = sys.stdout.buffer
    for line in lines:
        out.write(line.encode() + b"\n")
    out.flush()
