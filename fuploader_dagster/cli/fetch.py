"""The command `fetch`: a list of addresses becomes files in a folder, or an archive."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from pydantic import ValidationError

from fuploader_dagster.archives.members import PlainMember
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import REFUSED, TRY_LATER
from fuploader_dagster.cli.words import counted, size
from fuploader_dagster.delivery.slot_members import FolderMembers, RenamedMembers
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.errors import ConfigError, PermanentError
from fuploader_dagster.fetching.addresses import Address, addresses_of
from fuploader_dagster.fetching.places import shown
from fuploader_dagster.fetching.settings import Fetch
from fuploader_dagster.settings.archive_formats import SUFFIXES, format_of

if TYPE_CHECKING:
    from fuploader_dagster.fetching.fetcher import Counts, Outcome
    from fuploader_dagster.fetching.task_folder import TaskFolder

WORK_NAME = ".fuploader-fetch"
_ARCHIVES = (*SUFFIXES["tar.zst"], *SUFFIXES["zip"])
_LOOK_SECONDS = 0.1


def fetch(
    file: Annotated[
        Path, typer.Argument(help="File with an address a line, after it perhaps a name. -: stdin.")
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the files; or an archive, .tar.zst or .zip."
        ),
    ] = Path(),
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="The only hosts to fetch from; may be repeated. One that is not public must be "
            "named in full."
        ),
    ] = None,
    deny_host: Annotated[
        list[str] | None, typer.Option(help="A host never to fetch from; may be repeated.")
    ] = None,
    urls: Annotated[
        str | None,
        typer.Option(help="The file is JSON, and this field of it has the list of addresses."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of downloads at once.")] = 64,
    per_host: Annotated[
        int, typer.Option(min=1, help="Number of downloads at once for one host.")
    ] = 16,
    max_bytes: Annotated[int, typer.Option(min=1, help="A file that is larger is not fetched.")] = 1
    << 30,
    retries: Annotated[
        int, typer.Option(min=0, help="Attempts after the first, if trying again can help.")
    ] = 3,
    decode: Annotated[
        bool, typer.Option("--decode", help="Unpack files that a server sends packed with gzip.")
    ] = False,
    ca_file: Annotated[
        Path | None, typer.Option(help="PEM file of the certificates to trust.")
    ] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Fetch a list of addresses, many at once, into a folder or an archive.

    Run it again to fetch what is missing: files that are there are compared with their digests and
    not fetched again, and a file that broke off goes on where it was. Addresses that are not public
    are refused.
    """
    try:
        settings = Fetch(
            urls=urls,
            allow_hosts=allow_host or [],
            deny_hosts=deny_host or [],
            concurrency=concurrency,
            per_host=per_host,
            max_bytes=max_bytes,
            max_retries=retries,
            decode=decode,
            ca_file=ca_file,
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{first['loc'][0]}".replace("_", "-").removesuffix("s") if first["loc"] else ""
        raise ConfigError(f"{option} {first['msg']}".strip()) from None
    content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    addresses = addresses_of(content, urls=settings.urls, most=sys.maxsize)
    if output.name.endswith(_ARCHIVES) and not output.is_dir():
        outcome = _into_archive(addresses, output, settings)
    elif output.name.endswith((*SUFFIXES["jsonl.zst"], *SUFFIXES["parquet"])):
        raise ConfigError(f"{output} cannot be an archive of files", hint="use .tar.zst or .zip")
    else:
        outcome = _into_folder(addresses, output, settings)
    _report(addresses, outcome, output, as_json=as_json)


def _into_folder(addresses: Sequence[Address], folder: Path, settings: Fetch) -> Outcome:
    from fuploader_dagster.fetching.task_folder import TaskFolder  # noqa: PLC0415

    with TaskFolder(folder / WORK_NAME, folder) as task:
        return _run(addresses, task, settings)


def _into_archive(addresses: Sequence[Address], archive: Path, settings: Fetch) -> Outcome:
    """All files that are there, in the order of the addresses."""
    from fuploader_dagster.fetching.task_folder import TaskFolder, numbered  # noqa: PLC0415

    work = archive.with_name(f"{WORK_NAME}-{archive.name}")
    if archive.exists() and not work.exists():
        raise PermanentError(f"{archive} exists already", hint="remove it, or name another")
    with TaskFolder(work) as task:
        outcome = _run(addresses, task, settings)
        files = [one.file for one in outcome.fetched]
        stored = [
            PlainMember(one.file, one.size_bytes, bytes.fromhex(one.sha256), to_text(one.headers))
            for one in files
        ]
        names = numbered(one.name for one in files)
        if files:
            with RenamedMembers(
                FolderMembers(task.files, stored), dict(enumerate(names))
            ) as members:
                write_archive(archive, members, form=format_of(archive.name))
            archive.chmod(0o644)
    if not outcome.missed:
        shutil.rmtree(work)
    return outcome


def _run(addresses: Sequence[Address], task: TaskFolder, settings: Fetch) -> Outcome:
    from fuploader_dagster.fetching.connections import Connections  # noqa: PLC0415  has aiohttp
    from fuploader_dagster.fetching.fetcher import Counts, Fetcher  # noqa: PLC0415

    async def run() -> Outcome:
        connections = Connections(settings)
        counts = Counts()
        shown_now = asyncio.create_task(_show(counts, len(addresses)))
        try:
            return await Fetcher(settings, connections).fetch(addresses, task, counts)
        finally:
            shown_now.cancel()
            with suppress(asyncio.CancelledError):
                await shown_now
            await connections.close()

    return asyncio.run(run())


async def _show(counts: Counts, addresses: int) -> None:
    """A bar of finished files and the bytes that came, until it is cancelled."""
    with console.counting() as progress:
        bar = progress.add_task("fetching", total=addresses)

        def update() -> None:
            progress.update(
                bar,
                completed=counts.done + counts.failed,
                description=f"fetching, {counts.size_bytes / 1e6:,.1f} MB",
            )

        try:
            while True:
                update()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            update()


def _report(addresses: Sequence[Address], outcome: Outcome, output: Path, *, as_json: bool) -> None:
    if as_json:
        fetched = [
            {"address": shown(addresses[one.position].url), **_as_json(one.file)}
            for one in outcome.fetched
        ]
        console.print_json({"fetched": fetched, "missed": [asdict(one) for one in outcome.missed]})
    else:
        fetched_bytes = size(sum(one.file.size_bytes for one in outcome.fetched))
        files = counted(len(outcome.fetched), "file")
        console.say(f"fetched {files}, {fetched_bytes}, into {output}")
        console.complain_of_each(
            "not fetched",
            [f"address {one.position + 1}, {one.address}: {one.reason}" for one in outcome.missed],
        )
    if outcome.missed:
        again = all(one.passing for one in outcome.missed)
        if again:
            console.complain("run the same command again to fetch what is missing")
        raise typer.Exit(TRY_LATER if again else REFUSED)


def _as_json(file: object) -> dict[str, object]:
    found: dict[str, object] = msgspec.to_builtins(file)
    found.pop("key")
    return found
