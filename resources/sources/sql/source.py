"""A table of a SQL database as a source: its settings. PostgreSQL, MySQL, MariaDB and SQLite.

There are three ways to tell which rows are to be read. Exactly one is chosen:

- `cursor`: rows after a position (`reading`).
- `skip_done`: rows without a result in another table, after a position too (`reading`).
- `status`: rows that a column calls ready (`claiming`).

`table` has the statements, `rows` makes messages, `horizon` waits for late transactions, `position`
and `claiming` have the tables of ours, `examination` is for `fuploader doctor`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import Field, field_validator, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Seconds
from fuploader_dagster.contracts.source import MessagePublisher, MessageSource, SourceSettings
from fuploader_dagster.errors import ConfigError, SourceRefused
from fuploader_dagster.resources.sources.sql.backlog import backlog
from fuploader_dagster.resources.sources.sql.claiming import ClaimingSource, claim_table
from fuploader_dagster.resources.sources.sql.examination import examine
from fuploader_dagster.resources.sources.sql.key_values import Key
from fuploader_dagster.resources.sources.sql.position import (
    FilePosition,
    Position,
    State,
    TablePosition,
    position_table,
)
from fuploader_dagster.resources.sources.sql.reader_lock import ReaderLock
from fuploader_dagster.resources.sources.sql.reading import ReadingSource
from fuploader_dagster.resources.sources.sql.rows import RowShape
from fuploader_dagster.resources.sources.sql.settings import Name, Names, SkipDone, Status
from fuploader_dagster.resources.sources.sql.table import (
    Described,
    Keyset,
    condition,
    describe,
    refuse_inexact,
    refuse_missing,
    refuse_unless_unique,
)
from fuploader_dagster.resources.sql.address import dialect_of, shown_address, usable_url
from fuploader_dagster.resources.sql.connection import Database, Transaction
from fuploader_dagster.resources.sql.errors import OF_A_SOURCE
from fuploader_dagster.resources.sql.own_table import OwnTable, full_name
from fuploader_dagster.settings.secret import Secret, place_of_unset

_WAYS = ("cursor", "skip_done", "status")
_CLOCK_SECONDS = 2.0
"""A clock of seconds gives one value for that long, and its rows come in any order."""


class SqlTable(SourceSettings):
    """A table or view of PostgreSQL, MySQL, MariaDB or SQLite. Each row is a message, whose body is
    the row as JSON. Exactly one of `cursor`, `skip_done` and `status` says which rows are read."""

    url: Secret
    """Address of the database: `postgresql://user:password@host/database`, `mysql://…`,
    `mariadb://…`, or `sqlite:////path/of/the/file`
    (with three slashes the path is relative to the configuration)."""
    table: Name
    """Name of the table or view."""
    schema_name: Name | None = None
    """Schema of the table and of those that we keep; in MySQL, another database. By default, the
    one that the database looks in."""
    columns: Names | Annotated[Mapping[Name, Name], Field(min_length=1)] | None = None
    """Columns that the message has, or, to rename them, fields and their columns:
    `{id: mid, text: content}`. By default all of them, except the column of `status`."""
    where: Annotated[str, Field(min_length=1)] | None = None
    """A condition in SQL that rows must meet; always the same one: `kind = 'news'`."""
    cursor: Names = ()
    """Columns by which rows are read, each row once: `id`, or `[updated_at, id]`. They must be
    unique together, and grow: a row that gets a value below one that was read is not read."""
    skip_done: SkipDone | None = None
    """Read rows that have no result in another table yet."""
    status: Status | None = None
    """Read rows that a column calls ready, and set it. Any number of workers share them at once."""
    key: Names = ()
    """Unique columns by which `skip_done` and `status` order rows and find them again. By default
    the primary key."""
    lag_seconds: Annotated[float, Field(ge=0, le=86_400)] | None = None
    """How long rows wait, once they were seen, for those of transactions that began earlier and
    have lower keys. Must be longer than the longest transaction that writes to the table; on
    PostgreSQL, only longer than one takes from drawing a number to writing. By default 10 with
    MySQL and MariaDB, 1 with PostgreSQL, 0 with SQLite, and at least 2 if `cursor` has several
    columns: the first may be a time in seconds. `status` needs none."""
    reader: Annotated[str, Field(min_length=1, max_length=190)] | None = None
    """Name of this reader. Workers of one reader share the rows; another reader gets all of them
    too. By default the name of the table."""
    position_table: Name = "fuploader_positions"
    """Table that has the positions of `cursor` and `skip_done`; created if it is missing. Several
    readers may share it."""
    position_file: Path | None = None
    """Keep the position in this file instead, for a database in which the user may only read. The
    file must stay on one machine."""
    claim_table: Name = "fuploader_claims"
    """Table that has the keys of the rows that workers of `status` have in hand; created if it is
    missing. Several readers may share it."""
    poll_seconds: Seconds = 1.0
    """How long to wait before looking again at a table that had nothing more; 3600: an hour."""
    timeout_seconds: Seconds = 60.0
    """Longest time that one call of the database may take."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: Secret) -> Secret:
        return usable_url(url)

    @model_validator(mode="after")
    def _one_way(self) -> SqlTable:
        chosen = [name for name in _WAYS if getattr(self, name)]
        if len(chosen) != 1:
            raise ValueError(
                "set exactly one of cursor, skip_done and status, which say what rows are read"
            )
        if self.cursor and self.key:
            raise ValueError("key is for skip_done and status: cursor names the columns itself")
        if self.status is not None:
            if self.status.column in self.fields(()).values():
                raise ValueError("columns must not name the column of status: it changes")
            if self.position_file is not None or self.lag_seconds is not None:
                raise ValueError("status needs neither position_file nor lag_seconds")
        own = self.claim_table if self.status is not None else self.position_table
        if own == self.table:
            raise ValueError("position_table and claim_table must be other tables than table")
        return self

    def source(self, *, prefetch: int) -> MessageSource:
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; it must be at least 1")
        if self.status is not None:
            return ClaimingSource(self, prefetch)
        return ReadingSource(self, prefetch)

    def publisher(self) -> SqlTablePublisher:
        return SqlTablePublisher(self)

    def describe(self) -> str:
        return f"table {self.full_name} at {self.address}"

    def examine(self) -> Iterator[Diagnosis]:
        return examine(self)

    @property
    def full_name(self) -> str:
        return full_name(self.table, self.schema_name)

    @property
    def address(self) -> str:
        """Without login and options."""
        return place_of_unset(self.url) or shown_address(self.parsed_url)

    @property
    def reader_name(self) -> str:
        return self.reader or self.full_name

    @property
    def required_status(self) -> Status:
        assert self.status is not None  # noqa: S101 - asked only where it was chosen
        return self.status

    @cached_property
    def parsed_url(self) -> sa.URL:
        return sa.make_url(self.url.get_secret_value())

    @property
    def _file(self) -> Path | None:
        """The database's own, if it is a file."""
        return Path(self.parsed_url.database or "") if self._dialect.is_a_file else None

    @property
    def lag(self) -> float:
        if self.lag_seconds is not None:
            return self.lag_seconds
        default: float = self._dialect.default_lag_seconds
        return max(default, _CLOCK_SECONDS) if len(self.cursor) > 1 else default

    @cached_property
    def clause(self) -> sa.TableClause:
        """The table, with the columns that conditions of ours name."""
        named = [] if self.skip_done is None else list(self.skip_done.match.values())
        return sa.table(self.table, *map(sa.column, named), schema=self.schema_name)

    def database(self, *, reconnects: bool) -> Database:
        return Database(
            self.parsed_url,
            self._dialect(self.timeout_seconds),
            self.address,
            errors=OF_A_SOURCE,
            reconnects=reconnects,
        )

    def described(self, transaction: Transaction) -> Described:
        """What the table is like now. Raises `SourceRefused` if it does not fit the settings."""
        described = describe(transaction, self.table, self.schema_name)
        wanted = [*self.fields(()).values(), *self.cursor, *self.key]
        wanted += [] if self.status is None else [self.status.column]
        wanted += [] if self.skip_done is None else list(self.skip_done.match.values())
        refuse_missing(described, wanted)
        self.key_of(described)
        if self.skip_done is not None:
            results = describe(transaction, self.skip_done.table, self.skip_done.schema_name)
            refuse_missing(results, list(self.skip_done.match))
        return described

    def key_of(self, described: Described) -> Sequence[str]:
        """The columns by which rows are read. Raises `SourceRefused` if they are not unique."""
        key = self.cursor or self.key or tuple(described.primary)
        if not key:
            raise SourceRefused(
                f"table {self.full_name} has no primary key",
                hint="name unique columns in `key`",
            )
        refuse_unless_unique(described, key, "cursor" if self.cursor else "key")
        dialect = self._dialect(self.timeout_seconds)
        refuse_inexact(described, key, dialect, ordered=self.status is None)
        return key

    def shape(self, described: Described, key: Sequence[str]) -> RowShape:
        fields = self.fields(described.types)
        if self.status is not None:
            fields.pop(self.status.column, None)
        return RowShape(fields, key, described.types)

    def keyset(self, described: Described, key: Sequence[str]) -> Keyset:
        return Keyset(key, described, row_values=self._dialect.has_row_values)

    def fields(self, all_columns: Iterable[str]) -> dict[str, str]:
        """The column of each field of a message."""
        if isinstance(self.columns, Mapping):
            return dict(self.columns)
        return {name: name for name in self.columns or all_columns}

    def page(
        self,
        keyset: Keyset,
        between: tuple[Key | None, Key | None],
        columns: Sequence[sa.ColumnElement[Any]],
        rows: int,
    ) -> sa.Select[Any]:
        """The first rows to be read after one key, up to the other."""
        done = [] if self.skip_done is None else [~self.skip_done.is_done(self.clause)]
        found = (
            sa.select(*columns)
            .select_from(self.clause)
            .where(*keyset.between(*between), *condition(self.where), *done)
            .order_by(*keyset.order())
            .limit(rows)
        )
        return found if self.status is not None else self.by_index(keyset, found)

    def by_index(self, keyset: Keyset, statement: sa.Select[Any]) -> sa.Select[Any]:
        """MySQL would rather sort the whole table than read a page in the order of an index."""
        if keyset.index is None:
            return statement
        quoted = keyset.index.replace("`", "``")
        return statement.with_hint(self.clause, f"FORCE INDEX FOR ORDER BY (`{quoted}`)", "mysql")

    def position(self, database: Database, key: Sequence[str]) -> Position:
        if self.position_file is not None:
            return FilePosition(self.position_file, self.reader_name, key)
        own = self.positions()
        lock = self.lock(database, f"{own.name}/{self.reader_name}")
        return TablePosition(database, own, self.reader_name, key, lock)

    def lock(self, database: Database, name: str) -> ReaderLock:
        """MySQL's locks are the whole server's, so the name of the database is part of theirs."""
        return ReaderLock(database, f"{self.parsed_url.database}/{name}", self._file)

    def positions(self) -> OwnTable:
        return position_table(self.position_table, self.schema_name)

    def claims(self) -> OwnTable:
        return claim_table(self.claim_table, self.schema_name)

    def is_pass_due(self, state: State, now: float) -> bool:
        """Whether to read the rows again that have no result yet. `now`: seconds since 1970."""
        skip_done = self.skip_done
        if skip_done is None or state.key is None:
            return False
        return not 0 <= now - state.pass_began < skip_done.again_seconds

    @property
    def _dialect(self) -> type[Any]:
        return dialect_of(self.parsed_url)


class SqlTablePublisher(MessagePublisher):
    """Counts; a table is not written to."""

    def __init__(self, settings: SqlTable) -> None:
        self._settings = settings
        self._database = settings.database(reconnects=True)

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        for _ in messages:
            raise SourceRefused(
                f"no message can be put into {self._settings.describe()}: it is only read",
                hint="insert a row into the table instead",
            )
        return 0

    def backlog(self) -> int:
        """Rows that are not settled; more than a million count as a million."""
        return backlog(self._settings, self._database)

    def close(self) -> None:
        self._database.close()
