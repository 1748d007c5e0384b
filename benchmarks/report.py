"""The table: on the terminal, and between the two marks in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.results import Row, Spread

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
HEADINGS = ("what", "unit", "ours", "FUploader", "bare", "ratio", "asked for", "reached")
_VERDICTS = {True: "yes", False: "no", None: ""}


def table(rows: Iterable[Row]) -> Table:
    """For the terminal; problems are below the row's name."""
    shown = Table(title="median (least to most)", show_lines=True)
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in ("what", "unit") else "right")
    for row in rows:
        name, *rest = _cells(row)
        shown.add_row(f"{name}\n[dim]{row.note}[/dim]" if row.note else name, *rest)
    return shown


def markdown(header: Mapping[str, Any], rows: Sequence[Row], source: str) -> str:
    """The table and the machine it was measured on, for docs/benchmarks.md."""
    machine, versions = header["machine"], header["versions"]
    lines = [
        f"Measured {header['date']} on {machine['cores']} cores ({machine['processor']}), "
        f"{machine['memory_gib']} GiB, {machine['system']}; {header['disk']}; "
        f"load at the start {machine['load_at_start']}. Commit {header['commit']}. "
        f"From `benchmarks/results/{source}`"
        + (f", at scale {header['scale']:g}" if header["scale"] != 1 else "")
        + (", short form" if header["quick"] else "")
        + (f", {header['repetitions']} repetitions of a drain" if "repetitions" in header else "")
        + ".",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        "| " + " | ".join(HEADINGS) + " | note |",
        "|" + "---|" * (len(HEADINGS) + 1),
    ]
    if not header["journalled"]:
        lines.insert(1, "\n**No journal below: these figures are worthless for comparison.**")
    lines += ["| " + " | ".join((*_cells(row), _escaped(row.note))) + " |" for row in rows]
    return "\n".join(lines)


def write_docs(header: Mapping[str, Any], rows: Sequence[Row], source: str, docs: Path) -> None:
    """Replace the text between the marks."""
    before, begin, rest = docs.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{docs} has no place for the table: {BEGIN} and {END}")
    docs.write_text(f"{before}{BEGIN}\n\n{markdown(header, rows, source)}\n\n{END}{after}")


def _cells(row: Row) -> Sequence[str]:
    return (
        row.row,
        row.unit,
        _shown(row.ours),
        _shown(row.fuploader),
        _shown(row.bare),
        f"{_shown(row.ratio)} of {row.against}" if row.against and row.ratio else "–",
        _asked(row),
        _VERDICTS[row.met],
    )


def _asked(row: Row) -> str:
    if row.least is None:
        return ""
    word = "at least" if row.more_is_better else "at most"
    aim = f", aim {row.aim:g}" if row.aim is not None else ""
    return f"{word} {row.least:g}{aim}"


def _shown(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.min == spread.max:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.min)} to {_number(spread.max)})"


def _number(value: float) -> str:
    """Three significant digits, no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
