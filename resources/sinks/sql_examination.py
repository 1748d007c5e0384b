"""Examines a table for `fuploader doctor`: whether rows can be stored in it, and stay there.

What must always hold: nothing is changed. Rights are tried, not read, with statements of no rows
(`LIMIT 0`, `WHERE false`), each in a transaction that is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fuploader_dagster.contracts.diagnosis import Diagnosis, trouble
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.resources.sinks.sql_connection import Database, Transaction
from fuploader_dagster.resources.sinks.sql_ledger import Ledger
from fuploader_dagster.resources.sinks.sql_table import TargetTable

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
    found = f"{table.description.name}: {len(table.description.conversions)} columns"
    yield Diagnosis("table", "good", found)
    yield from _columns(what, table)
    yield _tried(what.database, "rows", "rows can be inserted", _insertion(what, table))
    if what.slot_column is not None:
        delete = table.clause.delete().where(sa.false())
        yield _tried(what.database, "redo", "earlier rows can be deleted", [delete])
    yield _ledger(what)
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


def _ledger(what: Examined) -> Diagnosis:
    ledger, database = what.ledger, what.database
    try:
        with database.transaction() as transaction:
            there = ledger.exists(transaction)
            creatable = there or transaction.may_create_tables(ledger.table.schema)
    except FuploaderError as error:
        return trouble("ledger", error)
    if there:
        return _tried(database, "ledger", f"table {ledger.name}", ledger.trials())
    if not creatable:
        found = f"there is no table {ledger.name}, and this user may not create one"
        return Diagnosis("ledger", "warning", found, "let the user create tables, or create it")
    if not database.dialect.undoes_ddl:
        return Diagnosis("ledger", "good", f"table {ledger.name} will be created")
    try:
        with database.transaction() as transaction:
            ledger.create(transaction)  # and rolled back
    except FuploaderError as error:
        return trouble("ledger", error)
    return Diagnosis("ledger", "good", f"table {ledger.name} will be created")


def _tried(
    database: Database, check: str, found: str, statements: Sequence[sa.Executable]
) -> Diagnosis:
    def execute(connection: sa.Connection) -> Any:
        for statement in statements:
            connection.execute(statement)

    try:
        with database.transaction() as transaction:
            transaction.run(execute, "a statement that changes nothing failed")
    except FuploaderError as error:
        return trouble(check, error)
    return Diagnosis(check, "good", found)
