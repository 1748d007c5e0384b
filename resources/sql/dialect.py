"""What differs between databases: sessions, error codes, values, upserts. One subclass each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from fuploader_dagster.resources.sql.errors import Meaning
from fuploader_dagster.resources.sql.values import Conversion, Sort

CONNECT_SECONDS = 10
"""Longest time to wait for a connection."""
GRACE_SECONDS = 2
"""How much longer than the server we wait ourselves, so that the server can say what is wrong."""
IDLE_SECONDS = 600
"""The server gives up a transaction whose client has been silent for that long: its machine may be
gone, and the next attempt would wait for the ledger's row until then."""

VANISHED_SECONDS = 120
"""How long a server keeps the connection of a machine that is silent and holds a lock."""


@dataclass(frozen=True)
class Statement:
    """Inserts rows that have the same columns."""

    columns: Sequence[str]
    sql: str
    """With a place for each column, in their order."""
    key: Sequence[int]
    """Which of the columns are the key of an upsert."""
    in_bulk: bool
    """The table takes a load in bulk, which does the same as inserts."""


@dataclass(frozen=True)
class Finding:
    """What may lose rows that are stored."""

    check: str
    found: str
    to_do: str


class AsItIs(NamedTuple):
    """What is made of values that a driver would change, or could not read."""

    json: Callable[[bytes | str], Any]
    text: Callable[[bytes], Any]


class Dialect(ABC):
    """One kind of database. Keeps nothing about a connection but what it says."""

    name: ClassVar[str]
    schemes: ClassVar[Sequence[str]]
    """What a url may start with."""
    driver: ClassVar[str]
    """SQLAlchemy's name of dialect and driver."""
    library: ClassVar[str] = ""
    """What must be installed, and the extra of this package that has it."""
    extra: ClassVar[str] = ""
    replaces_by_any_key: ClassVar[bool] = False
    """Whether an upsert also replaces a row that has another unique key in common."""
    may_hang: ClassVar[bool] = False
    """Whether the driver waits for an answer for ever, unless `cut` ends it."""
    is_a_file: ClassVar[bool] = False
    has_row_values: ClassVar[bool] = True
    """Whether it finds the place of `(a, b) > (1, 2)` in an index."""
    has_snapshots: ClassVar[bool] = False
    default_lag_seconds: ClassVar[float] = 0.0
    """How long rows wait for those of transactions that began earlier."""
    undoes_ddl: ClassVar[bool] = True
    """Whether a transaction can create a table and roll it back."""

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds

    @abstractmethod
    def engine_arguments(self, url: sa.URL) -> Mapping[str, Any]:
        """More arguments of `create_engine`."""

    def connected(self, connection: Any) -> None:  # noqa: B027 - a default, on purpose
        """Set up a driver's new connection."""

    def cut(self, connection: Any) -> None:  # noqa: B027 - a default, on purpose
        """Break a driver's connection that has hung for too long, from another thread."""

    @abstractmethod
    def begin(self, connection: sa.Connection) -> None:
        """Set up a transaction; nothing was sent in it yet."""

    def begin_reading(self, connection: sa.Connection) -> None:
        """The same for a transaction that changes nothing."""
        self.begin(connection)

    def pieces(
        self,
        connection: sa.Connection,
        query: sa.Select[Any],
        rows: int,
        as_it_is: AsItIs,
        *,
        reading: bool,
    ) -> Generator[Sequence[tuple[Any, ...]], None, None]:
        """The rows of a query, so many at once, as the driver makes them. Neither the driver nor
        we keep those that were given, or read more before they are asked for.

        `reading`: the transaction changes nothing, so that it may be over after an error.
        SQLAlchemy's own results would take longer, and read ahead."""
        sql, values = written(query, connection.dialect)
        cursor = self.streaming_cursor(connection.connection.driver_connection)
        try:
            cursor.execute(sql, values)
            while piece := cursor.fetchmany(rows):
                yield piece
                del piece  # not to be kept while the next is read
        finally:
            cursor.close()

    def streaming_cursor(self, connection: Any) -> Any:
        """A cursor of a driver's connection that does not read all rows at once."""
        return connection.cursor()

    def key_trouble(self, column_type: Any, *, ordered: bool) -> str:
        """Why a row is not found again by the value of such a column; empty if it is. `ordered`:
        it also has to be compared with others in their order."""
        return ""

    def try_lock(self, connection: sa.Connection, name: str) -> bool:
        """Take the lock of that name until the connection ends, unless another one has it.

        A connection whose machine has vanished ends after some `VANISHED_SECONDS`."""
        raise NotImplementedError

    def unlock(self, connection: sa.Connection, name: str) -> None:
        """Release a lock that was taken on this connection."""
        raise NotImplementedError

    def snapshot(self, connection: sa.Connection) -> tuple[int, int] | None:
        """The number of the oldest transaction that may still change something, and the next
        number; None if this database does not say."""
        return None

    @abstractmethod
    def meaning(self, error: BaseException) -> Meaning:
        """What a driver's error means."""

    def named(self, meaning: Meaning, error: BaseException, names: frozenset[str]) -> Meaning:
        """With the column or constraint that the error is about, if it is one of `names`."""
        return meaning

    @abstractmethod
    def conversion(self, sort: Sort) -> Conversion:
        """Of the values of such a column."""

    def check_row(self, values: Sequence[Any]) -> None:  # noqa: B027 - a default, on purpose
        """Raises `Unfit` if the database cannot take a row because of its size."""

    def insert(
        self, connection: sa.Connection, statement: Statement, rows: Sequence[tuple[Any, ...]]
    ) -> None:
        """Send rows: all are stored, or it raises an error."""
        connection.exec_driver_sql(statement.sql, list(rows))

    @abstractmethod
    def upsert(
        self, table: sa.TableClause, columns: Sequence[str], key: Sequence[str]
    ) -> sa.Insert:
        """An insert that replaces the row that has the same key."""

    def plain_name(self, reflected: str) -> str:
        """A name as it is, from how SQLAlchemy found it."""
        return reflected

    def table_trouble(self, connection: sa.Connection, table: sa.TableClause) -> str:
        """Why a transaction cannot undo what it does to the table; empty if it can."""
        return ""

    def takes_bulk(self, connection: sa.Connection, table: sa.TableClause) -> bool:
        """Whether a load in bulk does the same to the table as inserts."""
        return False

    def findings(self, connection: sa.Connection, table: sa.TableClause) -> Sequence[Finding]:
        """What may lose rows of the table that are stored."""
        return ()

    def may_create_tables(self, connection: sa.Connection, schema: str | None) -> bool:
        """Asked only where `undoes_ddl` is false, so that it cannot be tried."""
        return True


_OF_NAMES = ("name", "column_names", "constrained_columns")


def as_named(found: Any, dialect: Dialect) -> Any:
    """What an inspector of SQLAlchemy found, with names as they are."""
    if isinstance(found, str):
        return dialect.plain_name(found)
    if isinstance(found, list):
        return [as_named(one, dialect) for one in found]
    if isinstance(found, dict):
        return {
            key: as_named(value, dialect) if key in _OF_NAMES else value
            for key, value in found.items()
        }
    return found


def written(query: sa.Select[Any], dialect: sa.Dialect) -> tuple[str, Sequence[Any]]:
    """A query and its values for a driver. None of them may be one that SQLAlchemy changes."""
    compiled = query.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    return str(compiled), [compiled.params[name] for name in compiled.positiontup or ()]


def replaced_on_conflict(
    insert: postgresql.Insert | sqlite.Insert, columns: Sequence[str], key: Sequence[str]
) -> sa.Insert:
    """An upsert, which SQLite says as PostgreSQL does."""
    others = {name: insert.excluded[name] for name in columns if name not in key}
    if not others:
        return insert.on_conflict_do_nothing(index_elements=list(key))
    return insert.on_conflict_do_update(index_elements=list(key), set_=others)
