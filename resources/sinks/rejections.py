"""The items of one delivery that a table does not take, and when the table itself is to blame."""

from __future__ import annotations

import sys
from collections import Counter

from fuploader_dagster.contracts.sink import RejectedItem
from fuploader_dagster.errors import SinkRefused
from fuploader_dagster.resources.sql.errors import NO_COLUMN

ENOUGH_ITEMS = 10
"""If none of so many items is accepted, the table is to blame, and not the items."""


class Rejections:
    """Collects them, in whatever order."""

    def __init__(self) -> None:
        self._items: list[RejectedItem] = []
        self._reasons: Counter[str] = Counter()
        self._unknown_column = ""
        """The reason of the first item that was rejected because of one."""

    def __len__(self) -> int:
        return len(self._items)

    def add(self, position: int, reason: str) -> None:
        reason = sys.intern(reason)  # often the same
        self._reasons[reason] += 1
        self._items.append(RejectedItem(position, reason))

    def add_unknown_column(self, position: int, reason: str) -> None:
        self._unknown_column = self._unknown_column or reason
        self.add(position, reason)

    def in_order(self) -> list[RejectedItem]:
        self._items.sort(key=lambda one: one.position)
        return self._items

    def refuse_unknown_column(self) -> None:
        """Raise `SinkRefused` if one is the reason. The caller has accepted no item."""
        if self._unknown_column:
            raise SinkRefused(f"no row was accepted: {self._unknown_column}", hint=NO_COLUMN)

    def refuse_if_enough(self, where: str) -> None:
        """Raise `SinkRefused` if they are many. The caller has accepted no item."""
        if len(self) >= ENOUGH_ITEMS:
            ((reason, _),) = self._reasons.most_common(1)
            raise SinkRefused(
                f"no row was accepted by {where}: {reason}",
                hint="compare the rows with the table's columns",
            )
