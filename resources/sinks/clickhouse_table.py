"""The table that gets the rows, as ClickHouse describes it, and blocks of rows for it.

What must always hold: a row is stored with all its values, each in the column of its name, or its
item is rejected. A column that a row does not have gets its default, which the server computes.

Only plain MergeTree tables are taken. Others merge rows, pass them on or drop them, and then a
count of rows does not tell whether all of a slot are stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuploader_dagster.errors import FuploaderError, SinkRefused
from fuploader_dagster.resources.sinks.clickhouse_errors import NO_SLOT, NO_TABLE
from fuploader_dagster.resources.sinks.clickhouse_server import Server
from fuploader_dagster.resources.sinks.clickhouse_values import Kind, kind_of
from fuploader_dagster.resources.sql.errors import NO_COLUMN, shown
from fuploader_dagster.resources.sql.values import Unfit

NO_ENGINE = "use a MergeTree table, and fill the other one from it by a materialized view"
_PLAIN = re.compile(r"(Replicated|Shared)?MergeTree")
_COMPUTED = ("MATERIALIZED", "ALIAS")
_NAME_CHARACTERS = 60
_WINDOW = re.compile(r"(?<!\w)non_replicated_deduplication_window = (\d+)")


class UnknownColumn(Unfit):
    """The table has no column of the name that a row has."""


@dataclass(frozen=True)
class Column:
    """One column that rows can have."""

    name: str
    type: Any
    """Of clickhouse-connect; None if it knows no such type."""
    kind: Kind | None
    """None if we cannot fill it."""
    type_name: str


@dataclass(frozen=True)
class Table:
    """What the server says about it."""

    name: str
    """With its database."""
    quoted: str
    engine: str
    columns: Mapping[str, Column]
    computed: frozenset[str]
    """Columns that no row can have, because the server computes them."""
    slot_column: str
    deduplicates: bool | None
    """Whether it remembers tokens of inserts; None if the server did not say."""

    def refuse_unless_fitting(self, columns: Iterable[str]) -> None:
        """Raises `SinkRefused` if the engine cannot be used, or if a column is missing."""
        if not _PLAIN.fullmatch(self.engine):
            raise SinkRefused(
                f"table {self.name} has the engine {self.engine}, which may merge, pass on or drop "
                "rows",
                hint=NO_ENGINE,
            )
        slot = self.columns.get(self.slot_column)
        if slot is None:
            hint = NO_SLOT.format(table=self.name, column=self.slot_column)
            raise SinkRefused(f"table {self.name} has no column {self.slot_column}", hint=hint)
        if slot.type is None or slot.type.base_type != "String" or slot.type.nullable:
            raise SinkRefused(
                f"column {self.slot_column} of table {self.name} has the type {slot.type_name}",
                hint="it must be String or LowCardinality(String)",
            )
        missing = [name for name in columns if name not in self.columns]
        if missing:
            names = ", ".join(dict.fromkeys(missing))
            raise SinkRefused(f"table {self.name} has no column {names}", hint=NO_COLUMN)

    def shape(self, names: Sequence[str]) -> Sequence[Column]:
        """The columns of rows that have these names. Raises `Unfit`."""
        if not names:
            raise Unfit("the row has no columns")
        for name in names:
            if name not in self.columns:
                word = "computes" if name in self.computed else "has no"
                raise UnknownColumn(
                    f"table {self.name} {word} column {shown(str(name), _NAME_CHARACTERS)}"
                )
            if self.columns[name].kind is None:
                raise Unfit(f"column {name} has a type that cannot be stored here")
            if name == self.slot_column:
                raise Unfit(f"column {name} is for the key of the partition")
        return [self.columns[name] for name in names]


def described(
    server: Server, table: str, database: str | None, slot_column: str, columns: Iterable[str]
) -> Table:
    """Ask the server. Raises `SinkRefused` if there is no such table, or if it does not fit."""
    where = {"name": table, "database": database or ""}
    chosen = "database = if({database:String} = '', currentDatabase(), {database:String})"
    tables = server.query(
        f"SELECT database, engine, engine_full FROM system.tables WHERE {chosen} "  # noqa: S608
        "AND name = {name:String}",
        f"could not look for table {table}",
        where,
    )
    if not tables:
        found = f"{database}.{table}" if database else table
        raise SinkRefused(f"there is no table {found} at {server.where}", hint=NO_TABLE)
    database, engine, engine_full = tables[0]
    rows = server.query(
        f"SELECT name, type, default_kind FROM system.columns WHERE {chosen} "  # noqa: S608
        "AND table = {name:String} ORDER BY position",
        f"could not read the columns of table {table}",
        where,
    )
    made = Table(
        name=f"{database}.{table}",
        quoted=f"{quoted(str(database))}.{quoted(table)}",
        engine=engine,
        columns={
            name: _column(name, type_name)
            for name, type_name, default in rows
            if default not in _COMPUTED
        },
        computed=frozenset(name for name, _, default in rows if default in _COMPUTED),
        slot_column=slot_column,
        deduplicates=_deduplicates(server, engine, engine_full),
    )
    made.refuse_unless_fitting(columns)
    return made


def quoted(name: str) -> str:
    """As an identifier."""
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def _column(name: str, type_name: str) -> Column:
    from clickhouse_connect.datatypes.registry import get_from_name  # noqa: PLC0415  an extra
    from clickhouse_connect.driver.exceptions import Error  # noqa: PLC0415

    try:
        column_type = get_from_name(type_name)
    except (Error, KeyError, ValueError, IndexError):  # a type that came later
        return Column(name, None, None, type_name)
    return Column(name, column_type, kind_of(column_type), type_name)


def _deduplicates(server: Server, engine: str, engine_full: str) -> bool | None:
    if engine != "MergeTree":
        return True  # replicated tables do, unless somebody has turned it off
    if match := _WINDOW.search(engine_full):
        return int(match[1]) > 0
    try:
        found = server.query(
            "SELECT value FROM system.merge_tree_settings "
            "WHERE name = 'non_replicated_deduplication_window'",
            "could not read the settings of tables",
        )
    except FuploaderError:
        return None
    return bool(found) and str(found[0][0]) != "0"
