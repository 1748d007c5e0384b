"""The horizon: up to which key all rows are there, so that none comes late in front of it.

The trouble: a transaction draws id 5, another one draws 6 and commits first. Who reads up to 6
then, and goes on after it, never sees 5.

What must always hold: when `safe` is a key, every row with a lower key that any transaction of the
last `lag_seconds` began to insert is visible. Reads that begin after `look` see it.

How. A look notes the highest key of the table. `lag_seconds` later every transaction that had drawn
a lower key is over, or has at least written something. On PostgreSQL the look then notes the number
of the next transaction (`txid_snapshot_xmax`), and the key is safe when all lower numbers are over
(`txid_snapshot_xmin`), however long that takes: transactions that only read have no number and hold
nothing up; those that write do, in any database of that server. Elsewhere the key is safe at once,
so `lag_seconds` must be longer than the longest transaction. SQLite has one writer at a time, who
draws keys and commits before the next one begins: no lag is needed.

The time is this machine's, and monotone; neither clocks of servers nor columns with times matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fuploader_dagster.resources.sources.sql.key_values import Key
from fuploader_dagster.resources.sql.connection import Transaction

_NOTES_PER_LAG = 20
_MOST_NOTES = 1_000
"""More would take memory, and bring rows hardly sooner."""


@dataclass
class _Noted:
    key: Key
    at: float
    before: int | None = None
    """All transactions with lower numbers have to be over."""


class Horizon:
    """What one reader knows. It begins with nothing."""

    def __init__(
        self, lag_seconds: float, highest: Callable[[Transaction], Key | None], where: str
    ) -> None:
        self.safe: Key | None = None
        self._lag_seconds, self._highest, self._where = lag_seconds, highest, where
        self._noted: deque[_Noted] = deque()

    def look(self, transaction: Transaction, now: float) -> None:
        """Note the highest key, and find out what is safe now. `now`: of a monotone clock."""
        highest = self._highest(transaction)
        if highest is not None and self._is_news(highest, now):
            if len(self._noted) == _MOST_NOTES:
                self._noted.pop()
            self._noted.append(_Noted(highest, now))
        snapshot = transaction.run(
            transaction.dialect.snapshot, f"could not read the snapshot of {self._where}"
        )
        oldest, following = snapshot or (0, 0)
        for noted in self._noted:
            if noted.before is None and now - noted.at >= self._lag_seconds:
                noted.before = following
        while self._noted and self._noted[0].before is not None:
            if oldest < self._noted[0].before:
                break
            self.safe = self._noted.popleft().key

    def _is_news(self, highest: Key, now: float) -> bool:
        if not self._noted:
            return highest != self.safe
        last = self._noted[-1]
        return highest != last.key and now - last.at >= self._lag_seconds / _NOTES_PER_LAG
