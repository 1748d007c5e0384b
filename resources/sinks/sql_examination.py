"""Examines a table for `fuploader doctor`: whether rows can be stored in it, and stay there.

What must always hold: nothing is changed. Rights are tried, not read, with statements of no rows
(`LIMIT 0`, `WHERE false`), each in a transaction that is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.resources.sinks.sql_ledger import Ledger
from fuploader_dagster.resources.sinks.sql_table import TargetTable
from fuploader_dagster.resources.sql.connection import Database, Transaction
from fuploader_dagster.resources.sql.own_table import tried

_TO_DO_COLUMNS = "give the column a default, or give it a value in columns"


@dataclass(frozen=True)
class Examined:
    """What is examined."""

    database: Database
    ledger: Ledger
    described: Callable[[Transaction], TargetTable]
    columns: Sequence[str]
    """Those that rows are known to have."""
    slot_column: str | None


def examine(what: Examined) -> Iterator[Diagnosis]:
    """Raises an error of this package if there is no such table, or no way to it."""
    with what.database.transaction() as transaction:
        table = what.described(transaction)
        lacking = transaction.findings(table.clause)
    found = f"{table.description.name}: {counted(len(table.description.conversions), 'column')}"
    yield Diagnosis("table", "good", found)
    yield from _columns(what, table)
    yield tried(what.database, "rows", "rows can be inserted", _insertion(what, table))
    if what.slot_column is not None:
        delete = table.clause.delete().where(sa.false())
        yield tried(what.database, "redo", "earlier rows can be deleted", [delete])
    yield what.ledger.examined(what.database, "ledger")
    for one in lacking:
        yield Diagnosis(one.check, "warning", one.found, one.to_do)


def _columns(what: Examined, table: TargetTable) -> Iterator[Diagnosis]:
    if what.columns:
        given = {*what.columns, what.slot_column}
        for name in sorted(table.description.needed - given):
            found = f"column {name} must have a value, and is not one of columns"
            yield Diagnosis("columns", "wrong", found, _TO_DO_COLUMNS)
    others = sorted(
        ", ".join(sorted(one))
        for one in table.description.unique - {frozenset(table.key)}
        if not one & table.description.automatic
    )
    if table.key and others and what.database.dialect.replaces_by_any_key:
        found = f"the table has another unique key ({others[0]}): a row may replace one that has it"
        yield Diagnosis("key", "warning", found, "drop that key, or name it in key")


def _insertion(what: Examined, table: TargetTable) -> Sequence[sa.Executable]:
    known = [*what.columns, *table.key, *table.description.needed, what.slot_column]
    names = [name for name in dict.fromkeys(known) if name is not None]
    names = names or list(table.description.conversions)[:1]
    nothing = sa.select(*(sa.null().label(name) for name in names)).limit(0)
    return [table.insert(names).from_select(names, nothing)]
