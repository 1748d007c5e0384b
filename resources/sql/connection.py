"""One connection to a database, and transactions in which every call ends.

What must always hold: each call of the database ends within the timeout, with its result or with an
error of ours, and no error refers to the driver's, which may quote values. A transaction that is
left with an exception is rolled back, by us or by the server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from fuploader_dagster.errors import ConfigError, FuploaderError
from fuploader_dagster.resources.sql.dialect import GRACE_SECONDS, Dialect, Finding
from fuploader_dagster.resources.sql.errors import (
    LOST,
    NO_DRIVER_WORDS,
    OF_A_SINK,
    BadRows,
    Errors,
    Kind,
    Meaning,
    explained,
    original,
)

Value = TypeVar("Value")
_CLIENT_SIDE = (TypeError, ValueError, OverflowError, LookupError, AssertionError)
"""What drivers raise, besides their own errors, about a value or about bytes that make no sense."""
_OF_A_VALUE: frozenset[Kind] = frozenset({"row"})
_OF_A_ROW: frozenset[Kind] = frozenset({"row", "unknown"})
"""Errors that `read` and `attempt` raise as `BadRows`."""


class Database:
    """Connects at the first transaction, and again if the connection was lost since the last."""

    def __init__(
        self,
        url: sa.URL,
        dialect: Dialect,
        where: str,
        *,
        errors: Errors = OF_A_SINK,
        reconnects: bool = True,
        **more: Any,
    ) -> None:
        """`where`: the database in messages, without a login. `reconnects`: a connection that was
        lost since the last transaction is not an error. `more`: arguments of `create_engine`."""
        self._url, self.dialect, self.where = url, dialect, where
        self.errors, self._reconnects, self._more = errors, reconnects, more
        self._watch = _Watch(dialect)
        self._engine: sa.Engine | None = None

    @contextmanager
    def transaction(self, *, reading: bool = False) -> Iterator[Transaction]:
        """Rolled back unless it was committed before the end. `reading`: it changes nothing."""
        with Transaction(self._opened(), self, self._watch, reading=reading) as transaction:
            yield transaction

    def close(self) -> None:
        self._watch.stop()
        engine, self._engine = self._engine, None
        if engine is not None:
            with suppress(SQLAlchemyError, OSError):
                engine.dispose()

    def _opened(self) -> sa.Engine:
        if self._engine is None:
            self._engine = self._new_engine()
        return self._engine

    def _new_engine(self) -> sa.Engine:
        dialect = self.dialect
        if dialect.is_a_file and not Path(self._url.database or "").is_file():
            raise self.errors.refused(  # SQLite would make an empty one
                f"could not open {self.where}: no such file", hint="create it, with the table"
            )
        try:
            engine = sa.create_engine(
                self._url.set(drivername=dialect.driver),
                hide_parameters=True,
                pool_pre_ping=self._reconnects,
                pool_reset_on_return=None,  # a transaction rolls back what it did not commit
                **dialect.engine_arguments(self._url),
                **self._more,
            )
        except ImportError as error:
            raise ConfigError(
                f"{dialect.name} needs {dialect.library}, which cannot be imported: {error}",
                hint=f"pip install 'fuploader-dagster[{dialect.extra}]'",
            ) from error

        @sa.event.listens_for(engine, "do_connect")
        def connect(  # SQLAlchemy asks the server a few things before its own "connect" event
            of: sa.Dialect, record: Any, arguments: Any, keywords: Any
        ) -> Any:
            connection = of.connect(*arguments, **keywords)
            self._watch.connection = connection
            dialect.connected(connection)
            return connection

        return engine


class Transaction:
    """One transaction. After an error of ours only its end is left."""

    def __init__(
        self, engine: sa.Engine, database: Database, watch: _Watch, *, reading: bool
    ) -> None:
        self.dialect, self._where = database.dialect, database.where
        self._engine, self._watch, self.reading = engine, watch, reading
        self.kinds = database.errors
        self._connection: sa.Connection | None = None
        self._usable = True
        driver = engine.dialect.dbapi
        of_driver = () if driver is None else (driver.Error,)  # without SQLAlchemy's around it
        self._errors: tuple[type[Exception], ...] = (
            SQLAlchemyError,
            OSError,
            *_CLIENT_SIDE,
            *of_driver,
        )

    def __enter__(self) -> Transaction:
        def begin() -> sa.Connection:
            connection = self._engine.connect()
            try:
                self._begin(connection)
            except BaseException:
                connection.invalidate()
                connection.close()
                raise
            return connection

        self._watch.start()
        self._connection = self._call(begin, f"could not connect to {self._where}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with self._watch.limit():
            if self._usable:
                try:
                    connection.rollback()  # what was not committed
                except self._errors:
                    self._usable = False
            with suppress(*self._errors):
                if not self._usable:
                    connection.invalidate()
                connection.close()

    @property
    def compiler(self) -> sa.Dialect:
        """Writes statements for this server."""
        return self._open().dialect

    def may_create_tables(self, schema: str | None) -> bool:
        return self.run(
            lambda connection: self.dialect.may_create_tables(connection, schema),
            f"could not read the rights at {self._where}",
        )

    def findings(self, table: sa.TableClause) -> Sequence[Finding]:
        """What may lose rows of the table that are stored."""
        return self.run(
            lambda connection: self.dialect.findings(connection, table),
            f"could not read the settings of {self._where}",
        )

    def run(self, action: Callable[[sa.Connection], Value], trying: str) -> Value:
        """What `action` returns. Raises one of the kinds in `Errors`, as all here do."""
        return self._call(lambda: action(self._open()), trying)

    def read(self, action: Callable[[sa.Connection], Value], trying: str) -> Value:
        """The same, but raises `BadRows` if a value cannot be read. If it was the driver that could
        not, and the transaction changes nothing, a new one has begun then: the driver may have
        ended it."""
        try:
            return self._call(lambda: action(self._open()), trying, of_rows=_OF_A_VALUE)
        except BadRows as error:
            bad = error
        if self.reading and bad.meaning.of_driver:
            self.run(self._begin_again, trying)
        raise bad

    def attempt(
        self,
        action: Callable[[sa.Connection], Value],
        trying: str,
        *,
        names: frozenset[str] = frozenset(),
    ) -> Value:
        """The same within a savepoint. If the rows are bad, that is rolled back, and `BadRows` is
        raised. `names`: of columns and constraints that a reason may contain."""

        self.run(lambda connection: _execute(connection, "SAVEPOINT"), trying)

        def nested() -> Value:
            connection = self._open()
            value = action(connection)
            _execute(connection, "RELEASE SAVEPOINT")
            return value

        bad: BadRows
        try:
            return self._call(nested, trying, of_rows=_OF_A_ROW, names=names)
        except BadRows as error:
            bad = error
        # After other errors there may be no savepoint left: a deadlock rolls back everything.
        self.run(_roll_back, trying)
        raise bad

    def commit(self) -> None:
        """Everything is durable, or, after an error, nothing is, or the ledger has it."""
        self.run(lambda connection: connection.commit(), f"could not commit to {self._where}")

    def _begin(self, connection: sa.Connection) -> None:
        connection.begin()
        begin = self.dialect.begin_reading if self.reading else self.dialect.begin
        begin(connection)

    def _begin_again(self, connection: sa.Connection) -> None:
        connection.rollback()
        self._begin(connection)

    def _open(self) -> sa.Connection:
        assert self._connection is not None  # noqa: S101
        return self._connection

    def _call(
        self,
        action: Callable[[], Value],
        trying: str,
        *,
        of_rows: frozenset[Kind] = frozenset(),
        names: frozenset[str] = frozenset(),
    ) -> Value:
        failure: Exception
        try:
            with self._watch.limit():
                return action()
        except self._errors as error:
            failure = self._meant(error, trying, of_rows, names)
        # Outside of `except`, so that the error does not refer to the driver's.
        if not isinstance(failure, BadRows):
            self._usable = False
        raise failure

    def _meant(
        self, error: Exception, trying: str, of_rows: frozenset[Kind], names: frozenset[str]
    ) -> FuploaderError | BadRows:
        inner = original(error)
        meaning: Meaning
        if self._watch.cut:
            meaning = Meaning("away", f"no answer within {self.dialect.timeout_seconds:g} s")
        elif isinstance(inner, OSError):
            meaning = Meaning("away", LOST)
        elif isinstance(inner, SQLAlchemyError):
            meaning = Meaning("refused", f"SQLAlchemy cannot do it ({type(inner).__name__})")
        elif isinstance(inner, _CLIENT_SIDE):
            kind: Kind = "row" if of_rows else "refused"
            words = f"{NO_DRIVER_WORDS} ({type(inner).__name__})"
            meaning = Meaning(kind, words, of_driver=True)
        else:
            meaning = self.dialect.meaning(inner)
        if meaning.kind in of_rows:
            return BadRows(self.dialect.named(meaning, inner, names))
        return explained(meaning, trying, self.kinds)


def _execute(connection: sa.Connection, statement: str) -> None:
    """By the driver: SQLAlchemy's own savepoints cost as much as ten rows."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(f"{statement} fuploader")
    finally:
        cursor.close()


def _roll_back(connection: sa.Connection) -> None:
    _execute(connection, "ROLLBACK TO SAVEPOINT")
    _execute(connection, "RELEASE SAVEPOINT")  # which is still there


class _Watch:
    """Breaks a connection on which a call takes too long, if its driver would wait for ever."""

    def __init__(self, dialect: Dialect) -> None:
        self.connection: Any = None
        """The driver's, the newest."""
        self.cut = False
        """The last call took too long."""
        self._dialect = dialect
        self._limit_seconds = dialect.timeout_seconds + GRACE_SECONDS
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch calls until `stop`. May be repeated; in a fork, it starts again."""
        if self._dialect.may_hang and not (self._thread and self._thread.is_alive()):
            self._stopped = threading.Event()
            self._thread = threading.Thread(target=self._look, args=[self._stopped], daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread = None

    @contextmanager
    def limit(self) -> Iterator[None]:
        """Around one call."""
        self.cut = False
        self._deadline = time.monotonic() + self._limit_seconds
        try:
            yield
        finally:
            with self._lock:
                self._deadline = None

    def _look(self, stopped: threading.Event) -> None:
        while not stopped.wait(min(1, self._limit_seconds / 4)):
            with self._lock:
                late = self._deadline is not None and time.monotonic() > self._deadline
                if late and self.connection is not None:
                    self.cut, self._deadline = True, None
                    self._dialect.cut(self.connection)
