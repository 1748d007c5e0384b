"""What was measured, and the file it is kept in.

A file `benchmarks/results/{time}.jsonl` holds one header object (`header` is true: date, machine,
versions, file system, scale; `whole` is true where all rows were measured) and then one object a
row:

    row unit ours fuploader bare ratio    each of the four `{median, min, max}` or null
    against                               what the ratio divides by: "fuploader" or "bare"
    judge least aim                       what is asked for of "ratio" or "ours"; null: nothing is
    more_is_better                        whether `least` and `aim` are reached from below
    note                                  what was not measured and why, what limits the row

`ratio` is the quotient of the medians; its least and most are the quotients of the extremes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).with_name("results")
SCRATCH = Path(__file__).with_name("scratch")


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where nothing was measured."""
        measured = sorted(values)
        if not measured:
            return None
        return cls(statistics.median(measured), measured[0], measured[-1])

    def over(self, other: Spread) -> Spread | None:
        """This divided by the other; None where the other has a zero."""
        if not (other.median and other.min and other.max):
            return None
        return Spread(
            self.median / other.median,
            self.min / other.max,
            self.max / other.min,
        )


Against = Literal["fuploader", "bare"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    row: str
    unit: str
    ours: Spread | None = None
    fuploader: Spread | None = None
    bare: Spread | None = None
    against: Against | None = None
    judge: Literal["ratio", "ours"] = "ratio"
    least: float | None = None
    aim: float | None = None
    more_is_better: bool = True
    note: str = ""

    @property
    def ratio(self) -> Spread | None:
        other = {"fuploader": self.fuploader, "bare": self.bare, None: None}[self.against]
        return self.ours.over(other) if self.ours and other else None

    @property
    def judged(self) -> Spread | None:
        """The value that `least` and `aim` are about."""
        return self.ratio if self.judge == "ratio" else self.ours

    @property
    def met(self) -> bool | None:
        """Whether the median reaches `least`; None where nothing is asked or nothing measured."""
        if self.least is None or self.judged is None:
            return None
        median = self.judged.median
        return median >= self.least if self.more_is_better else median <= self.least

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": asdict(self.ratio) if self.ratio else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        plain = {name: value for name, value in values.items() if name != "ratio"}
        for name in ("ours", "fuploader", "bare"):
            plain[name] = Spread(**values[name]) if values[name] else None
        return cls(**plain)


class ResultFile:
    """Written line by line, so that a run that is cut short keeps what it has."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(json.dumps({"header": True, **header}) + "\n")

    def add(self, row: Row) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row.as_json()) + "\n")


def read(path: Path) -> tuple[dict[str, Any], Sequence[Row]]:
    """Header and rows of a result file."""
    header, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    return header, [Row.from_json(values) for values in rows]


def latest(folder: Path = RESULTS) -> Path | None:
    """The newest result file of a whole run, or else the newest one; names begin with the time."""
    files = sorted(folder.glob("*.jsonl"))
    whole = [path for path in files if read(path)[0]["whole"]]
    return max(whole or files, default=None)
