"""Downloads from an origin on this machine, beside aria2c with the same number at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.downloads import DownloadRun, Files, downloaded, origin
from benchmarks.ground import Ground, Runs, note, row_of_rounds
from benchmarks.results import Row

CONCURRENCY = 64
_FEW = 20
_RATE_MB = 5
_MOST_GROWTH_MIB = 64
_SAID = "ours are digested and synced, aria2c does neither"

Sides = Runs[dict[str, DownloadRun]]


def rows(ground: Ground) -> Iterator[Row]:
    yield from _beside_aria2c(
        ground, Files(2_000, 100_000), "2,000 files of 100 kB", "files/s",
        lambda run: run.files_per_second,
    )  # fmt: skip
    yield from _beside_aria2c(
        ground, Files(60, 10_000_000), "60 files of 10 MB", "MB/s", lambda run: run.mb_per_second
    )
    yield from _slow_origin(ground)
    yield from _many(ground)


def _beside_aria2c(
    ground: Ground, files: Files, what: str, unit: str, figure: Callable[[DownloadRun], float]
) -> Iterator[Row]:
    with ground.folder() as folder, origin(folder, files) as listed:
        sides = ground.rounds(
            f"downloads, {what}",
            {
                "ours": lambda: downloaded(ground, listed, files, "ours", CONCURRENCY),
                "aria2c": lambda: downloaded(ground, listed, files, "aria2c", CONCURRENCY),
            },
            ground.sizes.times(),
        )
    row = Row(row=f"downloads, {what}, {CONCURRENCY} at once, against aria2c", unit=unit)
    yield replace(row_of_rounds(row, sides, "aria2c", figure, _SAID), least=1.0)
    cpu = Row(row=f"CPU of downloads, {what}, against aria2c", unit="ms a MB", more_is_better=False)
    yield row_of_rounds(cpu, sides, "aria2c", lambda run: run.cpu_ms_per_mb, _SAID)
    yield Row(
        row=f"memory that downloads add, {what}",
        unit="MiB",
        ours=sides.spread(lambda one: one["ours"].grown_mib),
        judge="ours",
        least=_MOST_GROWTH_MIB,
        more_is_better=False,
        note=note(sides),
    )


def _slow_origin(ground: Ground) -> Iterator[Row]:
    """What cannot be faster than the origin allows."""
    files = Files(100, 10_000_000, rate=f"{_RATE_MB * 1_000_000}")
    bound = files.number * files.size_bytes / (_RATE_MB * 1e6 * _FEW)
    with ground.folder() as folder, origin(folder, files) as listed:
        sides = ground.rounds(
            "downloads from a slow origin",
            {
                "ours": lambda: downloaded(ground, listed, files, "ours", _FEW),
                "aria2c": lambda: downloaded(ground, listed, files, "aria2c", _FEW),
            },
            ground.sizes.times(3, 1),
        )
    theirs = sides.spread(lambda one: one["aria2c"].seconds / bound)
    yield Row(
        row=f"downloads, 100 files of 10 MB at {_RATE_MB} MB/s a connection, {_FEW} at once",
        unit=f"of the {bound:g} s that the origin takes",
        ours=sides.spread(lambda one: one["ours"].seconds / bound),
        judge="ours",
        least=1.1,
        more_is_better=False,
        note=note(f"aria2c {theirs.median:.2f}" if theirs else "", sides),
    )


def _many(ground: Ground) -> Iterator[Row]:
    files = Files(ground.sizes.messages(100_000, 5_000), 1_000)
    with ground.folder() as folder, origin(folder, files) as listed:
        runs = ground.repeat(
            f"downloads, {files.number:,} small files",
            lambda: downloaded(ground, listed, files, "ours", CONCURRENCY),
            ground.sizes.times(2, 1),
        )
    yield Row(
        row=f"downloads, {files.number:,} files of 1 kB: the end against the beginning",
        unit="of files/s",
        ours=runs.spread(lambda run: run.last_over_first),
        judge="ours",
        least=0.9,
        note=note(_rate(runs), runs),
    )
    yield Row(
        row=f"memory that downloads add, {files.number:,} files of 1 kB",
        unit="MiB",
        ours=runs.spread(lambda run: run.grown_mib),
        judge="ours",
        least=_MOST_GROWTH_MIB,
        more_is_better=False,
        note=note(runs),
    )


def _rate(runs: Runs[DownloadRun]) -> str:
    rate = runs.spread(lambda run: run.files_per_second)
    return f"{rate.median:,.0f} files/s" if rate else ""
