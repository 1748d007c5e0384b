"""How many dead letters there are, why, and how fast they come: for displays and for a warning.

`dead-letters/counts-w{worker}.json`, replaced by its writer after each batch with dead letters. The
letters themselves, which may be millions, are never read for it. A worker that starts continues the
counts in its file. Losing the file loses the counts, no letter.

Reasons are grouped: what differs from message to message (quoted text, numbers) is left out, and
beyond `MAX_REASONS` different ones all others count as one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fuploader_dagster.disk.durable import write_for_readers
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.errors import UNREADABLE_JSON, ForeignFile

MAX_REASONS = 50
OTHER_REASONS = "other reasons"
MINUTES = 60
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*")


class DeadLetterCounts(msgspec.Struct, kw_only=True):
    """Counts of one worker, or of all together."""

    total: int = 0
    reasons: dict[str, int] = {}
    minutes: dict[int, int] = {}
    """Letters per minute (minutes since 1970), for the last hour in which there were any."""

    def add(self, reasons: Iterable[str], now: float) -> None:
        """Count letters written now, by their reasons."""
        minute = int(now // 60)
        for group, count in Counter(map(grouped, reasons)).items():
            known = group in self.reasons or len(self.reasons) < MAX_REASONS
            name = group if known else OTHER_REASONS
            self.reasons[name] = self.reasons.get(name, 0) + count
            self.minutes[minute] = self.minutes.get(minute, 0) + count
            self.total += count
        kept: Counter[int] = Counter()
        for counted_at, count in self.minutes.items():
            if counted_at > minute - MINUTES:
                # If the clock was set back, a minute may be in the future: it counts as this one.
                kept[min(counted_at, minute)] += count
        self.minutes = dict(kept)

    def last_hour(self, now: float) -> int:
        oldest = int(now // 60) - MINUTES
        return sum(count for minute, count in self.minutes.items() if minute > oldest)


def grouped(reason: str) -> str:
    """The reason without what differs from message to message."""
    return _VARYING.sub("…", reason)


def read_counts(layout: Layout) -> DeadLetterCounts:
    reasons: Counter[str] = Counter()
    minutes: Counter[int] = Counter()
    total = 0
    for path in sorted(layout.dead_letters.glob("counts-*.json")):
        one = read_worker_counts(path)
        total += one.total
        reasons.update(one.reasons)
        minutes.update(one.minutes)
    return DeadLetterCounts(total=total, reasons=dict(reasons.most_common()), minutes=dict(minutes))


def counts_path(layout: Layout, writer: str) -> Path:
    """Where a writer of letters keeps its counts."""
    return layout.dead_letters / f"counts-{writer}.json"


def read_worker_counts(path: Path) -> DeadLetterCounts:
    """The counts in a file; zero where the file is missing or was torn by a power failure."""
    try:
        return msgspec.json.decode(read_own(path), type=DeadLetterCounts)
    except (FileNotFoundError, ForeignFile, *UNREADABLE_JSON):
        return DeadLetterCounts()


def write_worker_counts(path: Path, counts: DeadLetterCounts) -> None:
    write_for_readers(path, msgspec.json.encode(counts))
