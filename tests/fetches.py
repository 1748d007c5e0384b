"""Downloads for tests: a task of addresses, fetched into a folder, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aiohttp.abc import AbstractResolver

from fuploader_dagster.fetching.addresses import Address
from fuploader_dagster.fetching.connections import Connections
from fuploader_dagster.fetching.fetcher import Counts, Fetcher, Outcome
from fuploader_dagster.fetching.settings import Fetch
from fuploader_dagster.fetching.task_folder import TaskFolder
from tests.servers.ports import LOOPBACK


def settings_of(**changes: Any) -> Fetch:
    """Settings that reach servers on this machine, and do not wait long."""
    usual = {"allow_hosts": [LOOPBACK], "retry_delay_seconds": 0.01, "stall_seconds": 20}
    return Fetch(**{**usual, **changes})


def fetch(
    addresses: Iterable[str | Address],
    work: Path,
    *,
    files: Path | None = None,
    resolver: AbstractResolver | None = None,
    counts: Counts | None = None,
    **changes: Any,
) -> Outcome:
    """Fetch addresses into a folder."""
    settings = settings_of(**changes)
    wanted = [one if isinstance(one, Address) else Address(one) for one in addresses]

    async def run() -> Outcome:
        connections = Connections(settings, resolver)
        try:
            with TaskFolder(work, files) as folder:
                return await Fetcher(settings, connections).fetch(wanted, folder, counts)
        finally:
            await connections.close()

    return asyncio.run(run())


def contents(outcome: Outcome, work: Path) -> Mapping[str, bytes]:
    """The fetched files by their names."""
    return {one.file.name: (work / "files" / one.file.file).read_bytes() for one in outcome.fetched}


def only_reason(outcome: Outcome) -> str:
    """Why the only address was not fetched."""
    assert not outcome.fetched
    (missed,) = outcome.missed
    return missed.reason
