"""Works on documents, in one of four ways, and prints what it took.

Settings come as JSON in BENCH_SETTINGS. `how`: `ours` (the slots `partitions` of the pipeline in
`config`), `loop` (a bare aiohttp loop that posts to `url`, `concurrency` at once), `pool` (a bare
process pool) or `celery` (a client; the worker is a program of its own). The last three work on
`items` documents, and have them in memory before the time begins.

The time ends with the last result; CPU is that of this process and of its children.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.documents import documents_of
from benchmarks.programs.resident import resident_bytes

CHUNK = 16
"""Items that the pool hands over at once."""
_CELERY_SECONDS = 600


Run = Callable[[], float]
"""Works on everything; returns when the last result came."""


def main() -> None:
    settings = json.loads(os.environ["BENCH_SETTINGS"])
    run = _WAYS[settings["how"]](settings)
    resident = resident_bytes("VmRSS")
    cpu, started = _cpu_seconds(), time.monotonic()
    ended = run()
    print(
        json.dumps(
            {
                "seconds": ended - started,
                "cpu_seconds": _cpu_seconds() - cpu,
                "grown_bytes": resident_bytes("VmHWM") - resident,
            }
        )
    )


def _contents(settings: dict[str, Any]) -> list[bytes]:
    documents = documents_of(2000)
    return [documents.content(number) for number in range(settings["items"])]


def _ours(settings: dict[str, Any]) -> Run:
    import aiohttp  # noqa: F401, PLC0415  not the time to load it

    from fuploader_dagster.delivery.attempts import Done  # noqa: PLC0415  the others do without
    from fuploader_dagster.delivery.process import process_partitions  # noqa: PLC0415
    from fuploader_dagster.settings.loading import load_pipelines  # noqa: PLC0415

    (pipeline,) = load_pipelines(Path(settings["config"])).values()

    def run() -> float:
        ended, results = 0.0, 0
        for outcome in process_partitions(settings["partitions"], pipeline):
            if not isinstance(outcome, Done) or outcome.processed is None:
                sys.exit(f"not processed: {outcome}")
            ended = time.monotonic()
            results += outcome.processed.results
        _check(results, settings)
        return ended

    return run


def _loop(settings: dict[str, Any]) -> Run:
    import aiohttp  # noqa: PLC0415  the others do without

    contents = _contents(settings)

    async def post_all() -> float:
        waiting, results = iter(contents), 0
        connector = aiohttp.TCPConnector(limit=settings["concurrency"])
        async with aiohttp.ClientSession(connector=connector) as session:

            async def post_some() -> None:
                nonlocal results
                for content in waiting:
                    async with session.post(settings["url"], data=content) as answer:
                        answer.raise_for_status()
                        answered = await answer.read()
                    results += answered == content

            await asyncio.gather(*(post_some() for _ in range(settings["concurrency"])))
            ended = time.monotonic()
        _check(results, settings)
        return ended

    return lambda: asyncio.run(post_all())


def _pool(settings: dict[str, Any]) -> Run:
    from benchmarks.programs.work import FUNCTIONS  # noqa: PLC0415  the others do without

    contents = _contents(settings)

    def run() -> float:
        with ProcessPoolExecutor(settings["workers"]) as pool:
            results = list(pool.map(FUNCTIONS[settings["function"]], contents, chunksize=CHUNK))
            ended = time.monotonic()
        _check(sum(map(bool, results)), settings)
        return ended

    return run


def _celery(settings: dict[str, Any]) -> Run:
    from celery import group  # noqa: PLC0415  the others do without

    from benchmarks.programs.celery_app import work  # noqa: PLC0415

    texts = [content.decode() for content in _contents(settings)]
    work.delay(settings["function"], texts[0]).get(timeout=_CELERY_SECONDS)  # the worker is there

    def run() -> float:
        tasks = group(work.s(settings["function"], text) for text in texts)
        results = tasks.apply_async().join_native(timeout=_CELERY_SECONDS)
        ended = time.monotonic()
        _check(sum(map(bool, results)), settings)
        return ended

    return run


_WAYS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "ours": _ours,
    "loop": _loop,
    "pool": _pool,
    "celery": _celery,
}


def _check(results: int, settings: dict[str, Any]) -> None:
    if results != settings["items"]:
        sys.exit(f"{results:,} results of {settings['items']:,} items")


def _cpu_seconds() -> float:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


if __name__ == "__main__":
    main()
