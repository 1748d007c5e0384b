"""The table that is read: what the database says about it, and the statements.

What must always hold: pages are found by key, never by OFFSET, and the key is unique, so no row is
between two pages. A row with a NULL in its key has no place in that order, and is never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import NoSuchTableError

from fuploader_dagster.errors import SourceRefused
from fuploader_dagster.resources.sources.sql.key_values import Key
from fuploader_dagster.resources.sql.connection import Transaction
from fuploader_dagster.resources.sql.dialect import Dialect, as_named
from fuploader_dagster.resources.sql.errors import NO_TABLE
from fuploader_dagster.resources.sql.own_table import full_name

PRIMARY = "PRIMARY"
"""What MySQL calls the index of a primary key."""
_CONDITIONS = {"postgresql_where", "sqlite_where"}
_PLAIN: sa.types.TypeEngine[Any] = sa.types.NullType()


@dataclass(frozen=True)
class Described:
    """What the database says about a table."""

    name: str
    types: Mapping[str, Any]
    """By column, in the order of the table."""
    nullable: frozenset[str]
    changing: frozenset[str]
    """Columns that change by themselves whenever their row changes."""
    primary: Sequence[str]
    unique: Sequence[frozenset[str]]
    """Of the primary key, and of unique constraints and indexes."""
    indexes: Mapping[str, Sequence[str]]
    """Columns of each index, in their order, by its name."""
    is_view: bool


def describe(transaction: Transaction, table: str, schema: str | None) -> Described:
    """Ask the database. Raises `SourceRefused` if there is no such table."""
    name = full_name(table, schema)

    def look(connection: sa.Connection) -> Described | None:
        try:
            return _described(sa.inspect(connection), table, schema, transaction.dialect)
        except NoSuchTableError:
            return None

    found = transaction.run(look, f"could not read the columns of table {name}")
    if found is None:
        raise SourceRefused(f"there is no table {name}", hint=NO_TABLE)
    return found


def refuse_missing(described: Described, wanted: Sequence[str]) -> None:
    """Raises `SourceRefused` unless the table has the columns."""
    missing = [name for name in dict.fromkeys(wanted) if name not in described.types]
    if missing:
        raise SourceRefused(
            f"table {described.name} has no column {', '.join(missing)}",
            hint="correct the settings of the source, or add the column to the table",
        )


def refuse_unless_unique(described: Described, key: Sequence[str], setting: str) -> None:
    """Raises `SourceRefused` if two rows may have the same key. A view cannot say."""
    if described.is_view or any(unique <= set(key) for unique in described.unique):
        return
    primary = f", {', '.join(described.primary)} for example" if described.primary else ""
    raise SourceRefused(
        f"{setting} ({', '.join(key)}) is not unique in table {described.name}: rows would be lost "
        "between two pages",
        hint=f"add the columns of a unique key at its end{primary}",
    )


def refuse_inexact(
    described: Described, key: Sequence[str], dialect: Dialect, *, ordered: bool
) -> None:
    """Raises `SourceRefused` if the rows after a key, or with a key, would not be found by it."""
    for name in key:
        column_type = described.types[name]
        domain = getattr(column_type, "data_type", column_type)
        trouble = dialect.key_trouble(domain, ordered=ordered)
        if trouble:
            raise SourceRefused(
                f"column {name} of table {described.name} cannot be part of the key: it is "
                f"{trouble}, so rows would be lost or come again",
                hint="name other unique columns, with whole numbers, texts, dates or UUIDs",
            )


class Keyset:
    """Conditions and order of a key."""

    def __init__(self, columns: Sequence[str], described: Described, *, row_values: bool) -> None:
        """`row_values`: the database finds `(a, b) > (1, 2)` in an index."""
        self._parts: list[sa.ColumnClause[Any]] = [sa.column(name) for name in columns]
        self._row_values = row_values
        self._nullable = [part for part in self._parts if part.name in described.nullable]

        self.index = next(
            (
                name
                for name, others in described.indexes.items()
                if tuple(others[: len(columns)]) == tuple(columns)
            ),
            None,
        )
        """The name of one that has this order."""

    def order(self) -> list[sa.ColumnClause[Any]]:
        return self._parts

    def last_first(self) -> list[sa.UnaryExpression[Any]]:
        return [part.desc() for part in self._parts]

    def between(self, after: Key | None, up_to: Key | None) -> list[sa.ColumnElement[bool]]:
        """Rows after one key, up to the other."""
        found = self.has_place()
        if after is not None:
            found.append(self._beyond(after))
        if up_to is not None:
            found.append(self._at_most(up_to))
        return found

    def has_place(self) -> list[sa.ColumnElement[bool]]:
        return [part.is_not(None) for part in self._nullable]

    def one_of(self, keys: Sequence[Key]) -> sa.ColumnElement[bool]:
        if len(self._parts) == 1:
            return self._parts[0].in_([plain(key[0]) for key in keys])
        return sa.or_(*map(self._is, keys))

    def _is(self, key: Key) -> sa.ColumnElement[bool]:
        pairs = zip(self._parts, key, strict=True)
        return sa.and_(*(part == plain(value) for part, value in pairs))

    def _beyond(self, key: Key) -> sa.ColumnElement[bool]:
        if len(key) == 1:
            return self._parts[0] > plain(key[0])
        if self._row_values:
            return sa.tuple_(*self._parts) > sa.tuple_(*map(plain, key))
        return self._beyond_in_words(key)

    def _at_most(self, key: Key) -> sa.ColumnElement[bool]:
        if len(key) == 1:
            return self._parts[0] <= plain(key[0])
        if self._row_values:
            return sa.tuple_(*self._parts) <= sa.tuple_(*map(plain, key))
        *others, (last, last_value) = zip(self._parts, key, strict=True)
        found: sa.ColumnElement[bool] = last <= plain(last_value)
        for part, value in reversed(others):
            found = sa.or_(part < plain(value), sa.and_(part == plain(value), found))
        return found

    def _beyond_in_words(self, key: Key) -> sa.ColumnElement[bool]:
        """a > 1 or a = 1 and (b > 2 or ...): what MySQL finds in an index."""
        *others, (last, last_value) = zip(self._parts, key, strict=True)
        found: sa.ColumnElement[bool] = last > plain(last_value)
        for part, value in reversed(others):
            found = sa.or_(part > plain(value), sa.and_(part == plain(value), found))
        return found


def plain(value: Any) -> sa.BindParameter[Any]:
    """A value that the driver gets as it came from it."""
    return sa.literal(value, _PLAIN)


def condition(sql: str | None) -> list[sa.ColumnElement[bool]]:
    """The user's own, which may end with a comment."""
    return [] if sql is None else [sa.literal_column(f"({sql}\n)", sa.Boolean())]


def _described(
    inspector: sa.Inspector, table: str, schema: str | None, dialect: Dialect
) -> Described:
    columns = as_named(inspector.get_columns(table, schema), dialect)
    primary = as_named(inspector.get_pk_constraint(table, schema)["constrained_columns"], dialect)
    indexes = as_named(inspector.get_indexes(table, schema), dialect)
    whole = [one for one in indexes if _is_whole(one)]
    constraints = as_named(inspector.get_unique_constraints(table, schema), dialect)
    unique = [_names(one) for one in [*(one for one in whole if one["unique"]), *constraints]]
    return Described(
        name=full_name(table, schema),
        types={one["name"]: one["type"] for one in columns},
        nullable=frozenset(one["name"] for one in columns if one.get("nullable")),
        changing=frozenset(
            one["name"] for one in columns if "on update" in str(one.get("default") or "").lower()
        ),
        primary=tuple(primary),
        unique=[frozenset(one) for one in ([*unique, primary] if primary else unique)],
        indexes={
            **({PRIMARY: list(primary)} if primary else {}),
            **{str(one["name"]): _names(one) for one in [*constraints, *whole]},
        },
        is_view=not primary and not unique and table in _views(inspector, schema),
    )


def _is_whole(index: Any) -> bool:
    """It has all rows, and no expressions."""
    names = index["column_names"]
    conditions = _CONDITIONS & set(index.get("dialect_options", ()))
    return bool(names) and None not in names and not conditions


def _names(index: Any) -> list[str]:
    return [str(name) for name in index["column_names"]]


def _views(inspector: sa.Inspector, schema: str | None) -> Sequence[str]:
    try:
        others = inspector.get_materialized_view_names(schema)
    except NotImplementedError:
        others = []
    return [*inspector.get_view_names(schema), *others]
