"""Downloads the addresses in a file, in one of two ways, and prints what it took.

Settings come as JSON in BENCH_SETTINGS: `how` (`ours` or `aria2c`), `list` (the file), `folder` (an
empty one), `files` (how many there are) and `concurrency`. Ours are digested and synced at the end
of each task, which has as many addresses as one may have by default; aria2c does neither.

Time and CPU are of the downloads, without the start of Python. `rates` are files a second in each
tenth of ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.programs.resident import resident_bytes

_LOOK_SECONDS = 0.02
_Done = list[tuple[float, int]]


def main() -> None:
    settings = json.loads(os.environ["BENCH_SETTINGS"])
    run = {"ours": _ours, "aria2c": _aria2c}[settings["how"]](settings)
    resident = resident_bytes("VmRSS")
    cpu, started = _cpu_seconds(), time.monotonic()
    done = run()
    seconds = time.monotonic() - started
    found = sum(1 for path in Path(settings["folder"]).iterdir() if path.is_file())
    if found != settings["files"]:
        sys.exit(f"{found:,} of {settings['files']:,} files are there")
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": _cpu_seconds() - cpu,
                "grown_bytes": resident_bytes("VmHWM") - resident,
                "rates": _rates(done),
            }
        )
    )


def _ours(settings: dict[str, Any]) -> Callable[[], _Done]:
    from fuploader_dagster.fetching.addresses import addresses_of  # noqa: PLC0415
    from fuploader_dagster.fetching.connections import Connections  # noqa: PLC0415
    from fuploader_dagster.fetching.fetcher import Counts, Fetcher  # noqa: PLC0415
    from fuploader_dagster.fetching.settings import Fetch  # noqa: PLC0415
    from fuploader_dagster.fetching.task_folder import TaskFolder  # noqa: PLC0415

    at_once = settings["concurrency"]
    limits = Fetch(allow_hosts=["127.0.0.1"], concurrency=at_once, per_host=at_once)
    addresses = addresses_of(Path(settings["list"]).read_bytes(), most=settings["files"])
    most = limits.max_files
    tasks = [addresses[first : first + most] for first in range(0, len(addresses), most)]
    folder = Path(settings["folder"])

    async def run() -> _Done:
        counts, done = Counts(), [(time.monotonic(), 0)]
        connections = Connections(limits)

        async def look() -> None:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                done.append((time.monotonic(), counts.done))

        looking = asyncio.create_task(look())
        fetcher = Fetcher(limits, connections)
        for number, task in enumerate(tasks):
            with TaskFolder(folder / "work" / str(number), folder) as task_folder:
                await fetcher.fetch(task, task_folder, counts)
        looking.cancel()
        await connections.close()
        return done

    return lambda: asyncio.run(run())


def _aria2c(settings: dict[str, Any]) -> Callable[[], _Done]:
    program = shutil.which("aria2c")
    if program is None:
        sys.exit("aria2c is missing: apt-get install aria2")
    command = [program, "--quiet", "--file-allocation=none", "--max-connection-per-server=1"]
    command += [f"--max-concurrent-downloads={settings['concurrency']}", "--split=1"]
    command += [f"--dir={settings['folder']}", f"--input-file={settings['list']}"]

    def run() -> _Done:
        subprocess.run(command, check=True)
        return []

    return run


def _rates(done: _Done) -> list[float]:
    """Files a second in each tenth of the files."""
    if not done or done[-1][1] < 10:
        return []
    every = done[-1][1]
    at = [next(when for when, count in done if count >= every * part // 10) for part in range(11)]
    return [every / 10 / max(after - before, 1e-9) for before, after in zip(at, at[1:])]  # noqa: B905, RUF007


def _cpu_seconds() -> float:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


if __name__ == "__main__":
    main()
