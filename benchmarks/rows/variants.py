"""One file per message instead of a segment, and two workers instead of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.drains import DrainRun, drains
from benchmarks.ground import Ground, Runs, note
from benchmarks.results import Row, Spread
from benchmarks.rows.drain import fuploader_case, our_case


def rows(ground: Ground) -> Iterator[Row]:
    sizes = ground.sizes
    fuploader = drains(ground, fuploader_case(sizes), sizes.times(5, 2))
    files_case = replace(
        our_case(sizes), slot_format="files", messages=sizes.messages(50_000, 30_000)
    )
    files = drains(ground, files_case)
    yield Row(
        row="drain with slot_format: files, durable",
        unit="messages/s",
        ours=_rate(files),
        fuploader=_rate(fuploader),
        against="fuploader",
        least=5,
        aim=8,
        note=note(files, fuploader),
    )
    ours = drains(ground, our_case(sizes))
    ours_two = drains(ground, replace(our_case(sizes), workers=2))
    fuploader_two = drains(ground, replace(fuploader_case(sizes), workers=2), sizes.times(5, 2))
    yield Row(
        row="drain, two workers (FUploader supervised)",
        unit="messages/s",
        ours=_rate(ours_two),
        fuploader=_rate(fuploader_two),
        against="fuploader",
        note=note(_what_is_busy(ours_two), ours_two, fuploader_two),
    )
    yield Row(
        row="drain, two workers against one",
        unit="times",
        ours=_over(ours_two, ours),
        fuploader=_over(fuploader_two, fuploader),
        note=note(_what_is_busy(ours_two), ours, ours_two, fuploader, fuploader_two),
    )


def _rate(runs: Runs[DrainRun]) -> Spread | None:
    return runs.spread(lambda run: run.messages_per_second)


def _over(runs: Runs[DrainRun], others: Runs[DrainRun]) -> Spread | None:
    one, other = _rate(runs), _rate(others)
    return one.over(other) if one and other else None


def _what_is_busy(runs: Runs[DrainRun]) -> str:
    busy = runs.spread(lambda run: run.cores)
    return f"workers and broker keep {busy.median:.2f} cores busy" if busy else ""
