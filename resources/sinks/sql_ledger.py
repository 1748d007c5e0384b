"""The ledger: which deliveries are stored, in a table of the same database.

What must always hold: there is one row per partition, of one sink of one pipeline. It is written
first in the transaction that stores the partition's rows, so that a second process waits for it,
and it is durable exactly if they are. It says which redo of the partition was stored last, so an
attempt of an earlier one finds that there is nothing left to do.

Format: pipeline, sink, partition_key (together the primary key), redo, stored_rows, stored_at
(ISO 8601, UTC).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

from fuploader_dagster.contracts.sink import Delivery
from fuploader_dagster.errors import SinkRefused, SinkUnavailable
from fuploader_dagster.resources.sql.connection import Transaction
from fuploader_dagster.resources.sql.errors import BadRows
from fuploader_dagster.resources.sql.own_table import OwnTable, name_column

_MOST_CHARACTERS = {"pipeline": 190, "sink": 190, "partition_key": 255}
_TRIES = 3


@dataclass(frozen=True)
class Noted:
    """What the ledger says about a partition."""

    redo: int
    rows: int


class Ledger(OwnTable):
    """The table, and what is done with it in a transaction of its own or of a store."""

    def __init__(self, table: str, schema: str | None) -> None:
        columns: list[sa.Column[Any]] = [
            *(name_column(name, most, primary_key=True) for name, most in _MOST_CHARACTERS.items()),
            sa.Column("redo", sa.BigInteger, nullable=False),
            sa.Column("stored_rows", sa.BigInteger, nullable=False),
            sa.Column("stored_at", sa.String(32), nullable=False),
        ]
        super().__init__("ledger table", table, schema, columns)

    def noted(self, transaction: Transaction, delivery: Delivery) -> Noted | None:
        """What is noted about the delivery's partition."""
        row = transaction.run(
            lambda connection: connection.execute(
                sa.select(
                    *self.table.primary_key, self.table.c.redo, self.table.c.stored_rows
                ).where(*self._of(delivery))
            ).first(),
            f"could not read the ledger table {self.name}",
        )
        if row is None:
            return None
        if tuple(row)[:3] != _key(delivery):
            raise SinkRefused(
                f"the ledger table {self.name} takes different names for the same",
                hint="its key columns need a binary collation, utf8mb4_bin for example",
            )
        return Noted(row.redo, row.stored_rows)

    def claim(self, transaction: Transaction, delivery: Delivery) -> Noted | None:
        """Take the delivery for this transaction, or say that it is stored already. If another
        transaction has it, wait for its end."""
        for (name, most), text in zip(_MOST_CHARACTERS.items(), _key(delivery), strict=True):
            if len(text) > most:
                raise SinkRefused(f"the {name} of a delivery has more than {most} characters")
        for _ in range(_TRIES):
            noted = self.noted(transaction, delivery)
            if noted is not None and noted.redo >= delivery.redo:
                return noted
            if self._taken(transaction, delivery, noted):
                return None
        raise SinkUnavailable(
            f"another process stores {delivery.partition} at this moment", hint="try again"
        )

    def note(self, transaction: Transaction, delivery: Delivery, rows: int) -> None:
        """Note how many rows are stored of a delivery that was claimed."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        transaction.run(
            lambda connection: connection.execute(
                self.table.update().where(*self._of(delivery)),
                {"stored_rows": rows, "stored_at": now},
            ),
            f"could not write to the ledger table {self.name}",
        )

    def _taken(self, transaction: Transaction, delivery: Delivery, noted: Noted | None) -> bool:
        trying = f"could not write to the ledger table {self.name}"
        if noted is not None:
            changed = transaction.run(
                lambda connection: (
                    connection.execute(
                        self.table.update().where(
                            *self._of(delivery), self.table.c.redo == noted.redo
                        ),
                        {"redo": delivery.redo},
                    ).rowcount
                ),
                trying,
            )
            return changed == 1
        key = dict(zip(_MOST_CHARACTERS, _key(delivery), strict=True))
        row = {**key, "redo": delivery.redo, "stored_rows": 0, "stored_at": ""}
        refusal = None
        try:
            transaction.attempt(
                lambda connection: connection.execute(self.table.insert(), row), trying
            )
        except BadRows as bad:
            if not bad.meaning.twice:
                refusal = bad.meaning.words
        else:
            return True
        if refusal is not None:
            raise SinkRefused(f"{trying}: {refusal}", hint="was it made by something else?")
        return False

    def _of(self, delivery: Delivery) -> list[sa.ColumnElement[bool]]:
        columns = list(self.table.primary_key)
        return [column == text for column, text in zip(columns, _key(delivery), strict=True)]


def _key(delivery: Delivery) -> tuple[str, str, str]:
    return delivery.pipeline, delivery.sink, delivery.partition
