"""The table that gets the rows, as the database describes it, and the statements for its rows.

What must always hold: a row is stored with all its values, each in the column of its name, or its
item is rejected. A column that a row does not have gets its default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import NoSuchTableError

from fuploader_dagster.errors import SinkRefused
from fuploader_dagster.resources.sql.connection import Transaction
from fuploader_dagster.resources.sql.dialect import Dialect, Statement, as_named
from fuploader_dagster.resources.sql.errors import NO_COLUMN, NO_TABLE, NO_UNIQUE, shown
from fuploader_dagster.resources.sql.own_table import full_name
from fuploader_dagster.resources.sql.values import Conversion, Convert, Unfit, sort_of

_MOST_SHAPES = 1_000
_NAME_CHARACTERS = 60
_ROW_BYTES = 64
"""About what a row takes besides its texts."""
_LARGE_BYTES = 1 << 16
"""Every database takes a row up to that size."""
_SIZED = {str, bytes}


class UnknownColumn(Unfit):
    """The table has no column of the name that a row has, or none that takes a value."""


@dataclass(frozen=True)
class Description:
    """What the database says about a table."""

    name: str
    """With its schema."""
    conversions: Mapping[str, Conversion]
    """By column."""
    lengths: Mapping[str, int]
    """Most characters of columns that have such a limit."""
    needed: frozenset[str]
    """Columns that must be given: neither NULL nor a default."""
    computed: frozenset[str]
    """Columns that the database fills itself, always."""
    automatic: frozenset[str]
    """Columns that the database numbers by itself."""
    unique: frozenset[frozenset[str]]
    """Columns of its primary key and of each unique constraint or index."""
    in_bulk: bool
    """The table takes a load in bulk."""
    names: frozenset[str]
    """Of its columns, constraints and indexes: what a reason may contain."""


def describe(transaction: Transaction, table: str, schema: str | None) -> Description:
    """Ask the database. Raises `SinkRefused` if there is no such table, or if it cannot be undone
    what a transaction does to it."""
    name = full_name(table, schema)

    def look(connection: sa.Connection) -> Description | None:
        try:
            return _described(connection, sa.table(table, schema=schema), transaction.dialect)
        except NoSuchTableError:
            return None

    found = transaction.run(look, f"could not read the columns of table {name}")
    if found is None:
        raise SinkRefused(f"there is no table {name}", hint=NO_TABLE)
    clause = sa.table(table, schema=schema)
    trouble = transaction.run(
        lambda connection: transaction.dialect.table_trouble(connection, clause),
        f"could not read the engine of table {name}",
    )
    if trouble:
        raise SinkRefused(f"table {name} cannot be used: {trouble}", hint="alter table: InnoDB")
    return found


def _described(connection: sa.Connection, clause: sa.TableClause, dialect: Dialect) -> Description:
    inspector, table, schema = sa.inspect(connection), clause.name, clause.schema
    columns = as_named(inspector.get_columns(table, schema), dialect)
    primary = as_named(inspector.get_pk_constraint(table, schema), dialect)
    indexes = as_named(
        [one for one in inspector.get_indexes(table, schema) if one["unique"]], dialect
    )
    unique_constraints = as_named(inspector.get_unique_constraints(table, schema), dialect)
    constraints = [
        *unique_constraints,
        *as_named(inspector.get_foreign_keys(table, schema), dialect),
        *as_named(inspector.get_check_constraints(table, schema), dialect),
    ]
    unique: list[Sequence[str | None]] = [  # None: of an expression
        primary["constrained_columns"],
        *(one["column_names"] for one in indexes),
        *(one["column_names"] for one in unique_constraints),
    ]
    automatic = frozenset(
        one["name"]
        for one in columns
        if one.get("autoincrement") is True
        # SQLite numbers a primary key of one column, if it is an INTEGER.
        or (
            str(one.get("autoincrement")) == "auto"
            and [one["name"]] == primary["constrained_columns"]
        )
    )
    return Description(
        name=full_name(table, schema),
        conversions={one["name"]: dialect.conversion(sort_of(one["type"])) for one in columns},
        lengths={
            one["name"]: one["type"].length
            for one in columns
            # SQLite has no limit, whatever the type says.
            if isinstance(one["type"], sa.String) and one["type"].length and not dialect.is_a_file
        },
        needed=frozenset(
            one["name"]
            for one in columns
            if not one["nullable"]
            and one.get("default") is None
            and one["name"] not in automatic
            and "identity" not in one
            and "computed" not in one
        ),
        computed=frozenset(one["name"] for one in columns if "computed" in one),
        automatic=automatic,
        unique=frozenset(
            frozenset(name for name in names if name is not None)
            for names in unique
            if names and None not in names
        ),
        in_bulk=dialect.takes_bulk(connection, clause),
        names=frozenset(
            [
                "PRIMARY",
                *(one["name"] for one in columns),
                *(str(one["name"]) for one in [*indexes, *constraints] if one["name"]),
            ]
        ),
    )


class PreparedRow(NamedTuple):
    """A row as it is sent."""

    statement: Statement
    values: tuple[Any, ...]
    size: int
    """In bytes, about."""


class _Shape:
    """Of rows that have the same columns."""

    def __init__(self, statement: Statement, conversions: Mapping[str, Conversion]) -> None:
        """`conversions`: of the columns that rows have themselves."""
        self.statement = statement
        self.columns = tuple(conversions)
        self._conversions = tuple(conversions.values())
        self._known: dict[tuple[type, ...], Sequence[tuple[int, Convert]]] = {}

    def converts(self, values: Sequence[Any]) -> Sequence[tuple[int, Convert]]:
        """What changes, checks or measures values of such types, and at which places."""
        kinds = tuple(map(type, values))
        found = self._known.get(kinds)
        if found is None:
            if len(self._known) >= _MOST_SHAPES:
                self._known.clear()
            of_each = [
                conversion.by_type.get(kind, conversion.otherwise)
                or (_as_it_is if kind in _SIZED else None)
                for conversion, kind in zip(self._conversions, kinds, strict=True)
            ]
            found = [(at, one) for at, one in enumerate(of_each) if one is not None]
            self._known[kinds] = found
        return found


def _as_it_is(value: Any) -> Any:
    return value


class TargetTable:
    """Makes statements and their parameters from rows."""

    def __init__(
        self,
        description: Description,
        clause: sa.TableClause,
        dialect: Dialect,
        compiler: sa.Dialect,
        *,
        key: Sequence[str],
        slot_column: str | None,
    ) -> None:
        self.description = description
        self.key = tuple(key)
        self.clause = clause
        self._dialect, self._compiler = dialect, compiler
        self._slot_column = slot_column
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._by_columns: dict[frozenset[str], _Shape] = {}

    def refuse_unless_fitting(self, columns: Sequence[str]) -> None:
        """Raises `SinkRefused` if a column that settings name is missing, or a unique key is."""
        wanted = [*columns, *self.key, *([self._slot_column] if self._slot_column else [])]
        missing = [name for name in wanted if name not in self.description.conversions]
        if missing:
            names = ", ".join(dict.fromkeys(missing))
            raise SinkRefused(
                f"table {self.description.name} has no column {names}", hint=NO_COLUMN
            )
        if self.key and frozenset(self.key) not in self.description.unique:
            names = ", ".join(self.key)
            raise SinkRefused(
                f"table {self.description.name} has no unique key ({names})", hint=NO_UNIQUE
            )

    def takes_slot(self, slot: str) -> bool:
        """Whether `slot_column` is long enough."""
        most = self.description.lengths.get(self._slot_column or "")
        return most is None or len(slot) <= most

    def prepared(self, row: Mapping[str, Any], slot: str) -> PreparedRow:
        """The row as it is sent. Raises `Unfit`."""
        names = tuple(row)
        shape = self._shapes.get(names)
        if shape is None:
            shape = self._shape(names)
        values = [row[name] for name in shape.columns]
        size = _ROW_BYTES
        at, reason = 0, ""
        try:
            for at, convert in shape.converts(values):
                values[at] = value = convert(values[at])
                if type(value) in _SIZED:
                    size += len(value)
        except Unfit as error:
            reason = f"column {shape.columns[at]}: {error}"
        for key in self.key:
            if row.get(key) is None and key != self._slot_column:
                reason = reason or f"column {key} of the key is missing or NULL"
        if reason:
            raise Unfit(reason)
        if self._slot_column is not None:
            values.append(slot)
        if size > _LARGE_BYTES:
            self._dialect.check_row(values)
        return PreparedRow(shape.statement, tuple(values), size)

    def _shape(self, names: tuple[str, ...]) -> _Shape:
        known = self.description.conversions
        unknown = [name for name in names if name not in known]
        if unknown:
            name = shown(str(unknown[0]), _NAME_CHARACTERS)
            raise UnknownColumn(f"table {self.description.name} has no column {name}")
        computed = [name for name in names if name in self.description.computed]
        if computed:
            name = shown(computed[0], _NAME_CHARACTERS)
            raise UnknownColumn(f"table {self.description.name} computes column {name} itself")
        if len(self._shapes) >= _MOST_SHAPES:
            self._shapes.clear()
            self._by_columns.clear()
        columns = frozenset(names) - {self._slot_column}
        shape = self._by_columns.get(columns)
        if shape is None:
            shape = self._new_shape([name for name in names if name != self._slot_column])
            self._by_columns[columns] = shape
        self._shapes[names] = shape
        return shape

    def _new_shape(self, columns: Sequence[str]) -> _Shape:
        full = [*columns, *([self._slot_column] if self._slot_column else [])]
        if not full:
            raise Unfit("the row has no columns")
        compiled = self.insert(full).compile(dialect=self._compiler, column_keys=full)
        assert compiled.positiontup == full  # noqa: S101 - values are sent in this order
        key = [full.index(name) for name in self.key if name in full]
        conversions = {name: self.description.conversions[name] for name in columns}
        in_bulk = self.description.in_bulk and not key
        return _Shape(Statement(full, str(compiled), key, in_bulk), conversions)

    def insert(self, columns: Sequence[str]) -> sa.Insert:
        """Insert or, with a key, replace."""
        clause = sa.table(self.clause.name, *map(sa.column, columns), schema=self.clause.schema)
        return self._dialect.upsert(clause, columns, self.key) if self.key else clause.insert()
