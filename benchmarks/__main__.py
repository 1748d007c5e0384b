"""`python -m benchmarks`: measure, show the table, keep the results.

Exit code 1 when something could not be measured; the table says what and why.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine, report, results
from benchmarks.disk import Disk, journalled_folder
from benchmarks.ground import Ground, Sizes, log, note
from benchmarks.results import ResultFile, Row
from benchmarks.rows import GROUPS, QUICK

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    *,
    rows: Annotated[
        str, typer.Option(help=f"Groups of rows, with commas between: {', '.join(GROUPS)}.")
    ] = "",
    quick: Annotated[bool, typer.Option(help="The first rows, in under three minutes.")] = False,
    scale: Annotated[
        float, typer.Option(min=0.001, help="Part of the messages; to see whether it works.")
    ] = 1.0,
    repetitions: Annotated[
        int, typer.Option(min=0, help="Of a drain, others in proportion; 0: five.")
    ] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Where the disk of the run is made; default: a temp folder.")
    ] = None,
    disk_gib: Annotated[int, typer.Option(min=1, help="Size of a loop file, if one is made.")] = 24,
    write_docs: Annotated[
        bool, typer.Option(help="Measure nothing: put the newest results into docs/benchmarks.md.")
    ] = False,
) -> None:
    """Compare FUploader 1.0.5 with this project on the same machine, servers and messages."""
    if write_docs:
        _write_docs()
        return
    chosen = [name for name in rows.split(",") if name] or list(QUICK if quick else GROUPS)
    unknown = set(chosen) - set(GROUPS)
    if unknown:
        raise typer.BadParameter(f"no such rows: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and mounts are cleaned up
    sizes = Sizes(quick, scale, repetitions)
    with journalled_folder(folder or Path(tempfile.gettempdir()), disk_gib) as disk:
        log.print(f"disk: {disk.description}", highlight=False)
        whole = replace(sizes, repetitions=0) == Sizes() and chosen == list(GROUPS)
        kept = ResultFile(_new_path(sizes), _header(disk, sizes, whole=whole))
        with Ground(disk, sizes) as ground:
            measured = list(_measure(ground, chosen, kept))
        failures = ground.failures
    log.width = max(log.width, 160)
    log.print(report.table(measured))
    log.print(f"results: {kept.path}", highlight=False)
    if failures:
        log.print(f"[red]{failures} measurements failed[/red]; the rows say which")
        raise typer.Exit(1)


def _measure(ground: Ground, chosen: Sequence[str], kept: ResultFile) -> Iterator[Row]:
    for name in chosen:
        log.rule(name)
        try:
            for measured in GROUPS[name](ground):
                row = measured if ground.disk.journalled else _marked(measured)
                kept.add(row)
                yield row
        except Exception as error:  # noqa: BLE001  the edge: one group must not end the run
            lost = Row(row=name, unit="", note=ground.failed(f"the rows of {name}", error))
            kept.add(lost)
            yield lost


def _marked(row: Row) -> Row:
    return replace(row, note=note("no journal below: not to be compared", row.note))


def _header(disk: Disk, sizes: Sizes, *, whole: bool) -> dict[str, Any]:
    return {
        **machine.describe(),
        "disk": disk.description,
        "journalled": disk.journalled,
        "quick": sizes.quick,
        "scale": sizes.scale,
        "whole": whole,
        "repetitions": sizes.times(),
    }


def _new_path(sizes: Sizes) -> Path:
    """A run at another scale shows only that the rows work; its figures do not count."""
    folder = results.RESULTS if sizes.scale == 1 else results.SCRATCH
    return folder / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.jsonl"


def _write_docs() -> None:
    newest = results.latest()
    if newest is None:
        raise typer.BadParameter(f"there are no results in {results.RESULTS}; measure first")
    header, rows = results.read(newest)
    report.write_docs(header, rows, newest.name, report.DOCS)
    log.print(f"{report.DOCS} shows {newest.name}", highlight=False)


if __name__ == "__main__":
    app()
