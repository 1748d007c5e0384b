"""Memory of a worker with a large backlog."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.drains import Case, drains
from benchmarks.ground import Ground, note
from benchmarks.results import Row


def rows(ground: Ground) -> Iterator[Row]:
    sizes = ground.sizes
    backlog = sizes.messages(1_000_000, 200_000)
    enough = min(backlog, sizes.messages(30_000, 10_000))
    ours = drains(ground, Case("ours", backlog), sizes.times(3, 1))
    fuploader = drains(ground, Case("fuploader", backlog, enough=enough), sizes.times(3, 1))
    yield Row(
        row=f"peak memory of a worker, backlog of {backlog:,}",
        unit="MiB",
        ours=ours.spread(lambda run: run.peak_mib),
        fuploader=fuploader.spread(lambda run: run.peak_mib),
        against="fuploader",
        judge="ours",
        least=150,
        aim=100,
        more_is_better=False,
        note=note(f"FUploader was stopped after {enough:,} messages", ours, fuploader),
    )
    yield Row(
        row=f"memory of a worker after {backlog:,} messages against after a tenth of them",
        unit="times",
        ours=ours.spread(lambda run: run.growth),
        note=note(ours),
    )
    yield Row(
        row=f"CPU of the drain, backlog of {backlog:,}",
        unit="ms per 1,000 messages",
        ours=ours.spread(lambda run: run.cpu_ms_per_1000),
        note=note(ours),
    )
