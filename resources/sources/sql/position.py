"""The position: up to which key everything is settled, durable, and moved by one reader at a time.

What must always hold:

- A position moves only when the rows up to it are settled, in one transaction (or by one rename).
- One reader has it at a time. Who takes it raises its epoch; who had it before cannot move it now.
- At most `in_hand` rows after it may have been handed out before: they are marked as redelivered.

Format: a table with reader (the primary key), epoch, state (JSON) and changed_at (ISO 8601, UTC),
or a file with {"reader", "state"}. The state has the names of the key's `columns`, `position` and
`again_until` (keys as in `key_values`, or null), `in_hand` and `pass_began` (seconds since 1970).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from fuploader_dagster.disk.durable import make_dirs, write_durably
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.errors import (
    UNREADABLE_JSON,
    FuploaderError,
    SlotInUse,
    SourceRefused,
    SourceUnavailable,
)
from fuploader_dagster.resources.sources.sql.key_values import Key, decoded, encoded
from fuploader_dagster.resources.sources.sql.reader_lock import ReaderLock
from fuploader_dagster.resources.sql.connection import Database, Transaction
from fuploader_dagster.resources.sql.own_table import OwnTable, long_text, name_column


@dataclass(frozen=True)
class State:
    """What is kept."""

    columns: tuple[str, ...]
    """Of the key."""
    key: Key | None = None
    """Everything up to it is settled; None: nothing is."""
    in_hand: int = 0
    again_until: Key | None = None
    """Rows up to it were read in an earlier pass."""
    pass_began: float = 0.0


class _Written(msgspec.Struct):
    columns: list[str]
    position: list[list[str]] | None
    in_hand: int
    again_until: list[list[str]] | None = None
    pass_began: float = 0.0


class _File(msgspec.Struct):
    reader: str
    state: msgspec.Raw


class Position(ABC):
    """Where one reader's position is kept."""

    @abstractmethod
    def open(self) -> None:
        """Make sure that it can be kept."""

    @abstractmethod
    def take(self, new: State) -> State | None:
        """Become the one that moves it; None if another process is. `new`: if there is none yet.

        Returns what it was before, where `in_hand` says how many rows may come again. From now on
        it says at least as many as `new`.
        """

    @abstractmethod
    def move(self, state: State) -> None:
        """Durable when it returns. Raises `SourceUnavailable` if another process has taken it."""

    @abstractmethod
    def read(self) -> State | None:
        """What it is now, for whoever; None if there is none."""

    @abstractmethod
    def release(self, *, orderly: bool) -> None:
        """Let another process take it. `orderly`: the database answers; otherwise, and if the
        connection is closed after that, it does so by itself. Never raises, may be repeated."""


def as_json(state: State) -> bytes:
    return msgspec.json.encode(
        _Written(
            list(state.columns),
            None if state.key is None else encoded(state.key),
            state.in_hand,
            None if state.again_until is None else encoded(state.again_until),
            state.pass_began,
        )
    )


def from_json(raw: bytes | str, columns: Sequence[str], whose: str) -> State:
    """Raises `SourceRefused` if it is damaged, or of another cursor."""
    try:
        written = msgspec.json.decode(raw, type=_Written)
        key = None if written.position is None else decoded(written.position)
        until = None if written.again_until is None else decoded(written.again_until)
    except (*UNREADABLE_JSON, LookupError, TypeError, ArithmeticError):
        raise _unreadable(whose) from None
    places = [place for place in (key, until) if place is not None]
    if any(len(place) != len(written.columns) for place in places):
        raise _unreadable(whose)
    if written.columns != list(columns):
        raise SourceRefused(
            f"the position of {whose} is one of the columns {', '.join(written.columns)}, but now "
            f"rows are read by {', '.join(columns)}",
            hint="set `reader` to a new name, which reads the table from its beginning",
        )
    return State(tuple(columns), key, written.in_hand, until, written.pass_began)


def _unreadable(whose: str) -> SourceRefused:
    return SourceRefused(
        f"the position of {whose} cannot be read",
        hint="was it changed by hand? Remove it to read the table from its beginning",
    )


class TablePosition(Position):
    """In a table of ours in the same database."""

    def __init__(
        self,
        database: Database,
        own: OwnTable,
        reader: str,
        columns: Sequence[str],
        lock: ReaderLock,
    ) -> None:
        self._database, self._own, self._reader = database, own, reader
        self._columns = tuple(columns)
        self._whose = f"reader {reader!r} in the table {own.name}"
        self._lock = lock
        self._epoch = 0
        table = own.table
        self._move = table.update().where(
            table.c.reader == sa.bindparam("of_reader"), table.c.epoch == sa.bindparam("of_epoch")
        )

    def open(self) -> None:
        self._own.make_sure(self._database)

    def take(self, new: State) -> State | None:
        with self._database.transaction() as transaction:
            if not self._lock.taken(transaction):
                return None
            try:
                state = self._taken(transaction, new)
                transaction.commit()
            except BaseException:
                self._lock.release()
                raise
        return state

    def _taken(self, transaction: Transaction, new: State) -> State:
        table = self._own.table
        row = transaction.run(
            lambda connection: connection.execute(
                sa.select(table.c.epoch, table.c.state).where(table.c.reader == self._reader)
            ).first(),
            f"could not read {self._own.name}",
        )
        if row is None:
            self._epoch = 1
            former = replace(new, in_hand=0)
            statement: sa.Executable = table.insert()
        else:
            former = from_json(row.state, self._columns, self._whose)
            statement = table.update().where(
                table.c.reader == self._reader, table.c.epoch == row.epoch
            )
            self._epoch = int(row.epoch) + 1
        values = {
            "reader": self._reader,
            "epoch": self._epoch,
            "state": as_json(_with_at_least(former, new.in_hand)).decode(),
            "changed_at": _now(),
        }
        changed = transaction.run(
            lambda connection: connection.execute(statement, values).rowcount,
            f"could not write to {self._own.name}",
        )
        self._refuse_unless(row is None or changed == 1)
        return former

    def move(self, state: State) -> None:
        values = {
            "of_reader": self._reader,
            "of_epoch": self._epoch,
            "state": as_json(state).decode(),
            "changed_at": _now(),
        }
        with self._database.transaction() as transaction:
            changed = transaction.run(
                lambda connection: connection.execute(self._move, values).rowcount,
                f"could not write to {self._own.name}",
            )
            self._refuse_unless(changed == 1)
            transaction.commit()

    def read(self) -> State | None:
        with self._database.transaction(reading=True) as transaction:
            if not self._own.exists(transaction):
                return None
            table = self._own.table
            raw = transaction.run(
                lambda connection: connection.execute(
                    sa.select(table.c.state).where(table.c.reader == self._reader)
                ).scalar(),
                f"could not read {self._own.name}",
            )
        return None if raw is None else from_json(raw, self._columns, self._whose)

    def release(self, *, orderly: bool) -> None:
        self._lock.release()
        if orderly and not self._database.dialect.is_a_file:
            with suppress(FuploaderError), self._database.transaction() as transaction:
                self._lock.release(transaction)

    def _refuse_unless(self, ours: bool) -> None:
        if not ours:
            raise SourceUnavailable(
                f"another process has taken the position of {self._whose}",
                hint="nothing is lost: what was not settled is read again",
            )


class FilePosition(Position):
    """In a file on this machine, for a database that may only be read."""

    def __init__(self, path: Path, reader: str, columns: Sequence[str]) -> None:
        self._path, self._reader, self._columns = path, reader, tuple(columns)
        self._whose = f"reader {reader!r} in {path}"
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))

    def open(self) -> None:
        make_dirs(self._path.absolute().parent)

    def take(self, new: State) -> State | None:
        try:
            self._lock.acquire()
        except SlotInUse:
            return None
        try:
            former = self.read() or replace(new, in_hand=0)
            self._write(_with_at_least(former, new.in_hand))
        except BaseException:
            self._lock.release()
            raise
        return former

    def move(self, state: State) -> None:
        self._lock.check()
        self._write(state)

    def read(self) -> State | None:
        raw = None
        with suppress(FileNotFoundError):
            raw = read_own(self._path)
        if raw is None:
            return None
        try:
            written = msgspec.json.decode(raw, type=_File)
        except UNREADABLE_JSON:
            raise _unreadable(self._whose) from None
        if written.reader != self._reader:
            raise SourceRefused(
                f"{self._path} has the position of another reader",
                hint="set position_file to a file of this reader's own",
            )
        return from_json(bytes(written.state), self._columns, self._whose)

    def release(self, *, orderly: bool) -> None:
        self._lock.release()

    def _write(self, state: State) -> None:
        content = msgspec.json.encode(_File(self._reader, msgspec.Raw(as_json(state))))
        write_durably(self._path, content + b"\n")


def position_table(name: str, schema: str | None) -> OwnTable:
    columns: list[sa.Column[Any]] = [
        name_column("reader", primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        long_text("state"),
        sa.Column("changed_at", sa.String(32), nullable=False),
    ]
    return OwnTable("position table", name, schema, columns)


def _with_at_least(state: State, in_hand: int) -> State:
    return replace(state, in_hand=max(in_hand, state.in_hand))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
