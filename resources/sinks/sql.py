"""A table of a SQL database: PostgreSQL, MySQL, MariaDB or SQLite.

What must always hold:

- The rows of a delivery and its row in the ledger are one transaction. If the answer to its COMMIT
  is lost, the next attempt finds the ledger's row, or nothing at all.
- Two processes that store the same delivery write the same row of the ledger first: the second
  waits, and finds it.
- Nothing is stored that the database did not take as it was sent: sessions are strict.

How it works: `sql_insertion` sends rows in chunks and finds bad ones, `sql_ledger` has the ledger,
`sql_table` the statements. `resources/sql` has the transactions and what differs between databases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Annotated

import sqlalchemy as sa
from pydantic import Field, field_validator, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Seconds
from fuploader_dagster.contracts.sink import (
    Delivery,
    ItemRows,
    Reject,
    Sink,
    SinkSettings,
    StoredRows,
)
from fuploader_dagster.errors import SinkRefused
from fuploader_dagster.resources.sinks.sql_examination import Examined, examine
from fuploader_dagster.resources.sinks.sql_insertion import Insertion
from fuploader_dagster.resources.sinks.sql_ledger import Ledger
from fuploader_dagster.resources.sinks.sql_table import TargetTable, describe
from fuploader_dagster.resources.sql.address import dialect_of, shown_address, usable_url
from fuploader_dagster.resources.sql.connection import Database, Transaction
from fuploader_dagster.resources.sql.dialect import Dialect
from fuploader_dagster.resources.sql.own_table import full_name
from fuploader_dagster.settings.secret import Secret, place_of_unset

Name = Annotated[str, Field(min_length=1, max_length=63)]


class SqlSink(SinkSettings):
    """A table of PostgreSQL, MySQL, MariaDB or SQLite. It must exist; rows are inserted or, with
    `key`, replaced."""

    url: Secret
    """Address of the database: `postgresql://user:password@host/database`, `mysql://…`,
    `mariadb://…`, or `sqlite:////path/of/the/file`
    (with three slashes the path is relative to the configuration)."""
    table: Name
    """Name of the table."""
    schema_name: Name | None = None
    """Schema of the table and of the ledger; in MySQL, another database. By default, the one that
    the database looks in."""
    key: Sequence[Name] = ()
    """Columns of a primary key or unique constraint. A row whose key is in the table already
    replaces the values of that row. By default, its item becomes a dead letter."""
    slot_column: Name | None = None
    """A text column that gets the key of the partition. With it, a partition can be stored again
    after its rows have changed: its earlier rows are deleted."""
    ledger_table: Name = "fuploader_ledger"
    """Table that says which partitions are stored; created if it is missing. Several sinks and
    pipelines may share it."""
    timeout_seconds: Seconds = 60.0
    """Longest time that one call of the database may take: up to 1,000 rows, or a commit."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: Secret) -> Secret:
        return usable_url(url)

    @model_validator(mode="after")
    def _check_names(self) -> SqlSink:
        if self.table == self.ledger_table:
            raise ValueError("ledger_table must be another table than table")
        if len(set(self.key)) != len(self.key):
            raise ValueError("key names a column twice")
        return self

    def sink(self) -> SqlTarget:
        return SqlTarget(self)

    def describe(self) -> str:
        return f"table {full_name(self.table, self.schema_name)} at {self.database_address}"

    def replaced_by_redo(self) -> str:
        return f"{self.describe()}, slot_column {self.slot_column}" if self.slot_column else ""

    @property
    def database_address(self) -> str:
        """Without login and options."""
        return place_of_unset(self.url) or shown_address(self.parsed_url)

    @cached_property
    def parsed_url(self) -> sa.URL:
        return sa.make_url(self.url.get_secret_value())

    def dialect(self) -> Dialect:
        return dialect_of(self.parsed_url)(self.timeout_seconds)

    def examine(self) -> Iterator[Diagnosis]:
        target = SqlTarget(self)
        try:
            yield from target.examine()
        finally:
            target.close()


class SqlTarget(Sink):
    """The sink itself. Keeps a connection between deliveries."""

    def __init__(self, settings: SqlSink) -> None:
        self._settings = settings
        self._database = Database(
            settings.parsed_url, settings.dialect(), settings.database_address
        )
        self._ledger = Ledger(settings.ledger_table, settings.schema_name)
        self._table: TargetTable | None = None

    def store(self, delivery: Delivery, items: Iterable[ItemRows], reject: Reject) -> StoredRows:
        settings = self._settings
        self._refuse_redo(delivery)
        table = self._table or self.open()
        with self._database.transaction() as transaction:
            noted = self._ledger.claim(transaction, delivery)
            if noted is not None:
                return StoredRows(noted.rows, self._address, already_there=True)
            if delivery.redo:
                self._delete_earlier(transaction, delivery)
            if not table.takes_slot(delivery.partition):
                table = self._look_again(transaction)
                if not table.takes_slot(delivery.partition):
                    raise SinkRefused(
                        f"column {settings.slot_column} of {settings.describe()} is too short for "
                        f"{delivery.partition}",
                        hint="make it 100 characters long",
                    )
            insertion = Insertion(
                transaction,
                table,
                delivery.partition,
                look_again=lambda: self._look_again(transaction),
            )
            insertion.add(items)
            if not insertion.items:  # then the table may be to blame
                insertion.rejections.refuse_unknown_column()
                insertion.refuse_if_unknown()
                insertion.rejections.refuse_if_enough(settings.describe())
            if insertion.rejections:
                reject(insertion.rejections.in_order())
            self._ledger.note(transaction, delivery, insertion.rows)
            transaction.commit()
        return StoredRows(insertion.rows, self._address)

    def examine(self) -> Iterator[Diagnosis]:
        settings = self._settings
        return examine(
            Examined(
                self._database,
                self._ledger,
                self.described,
                tuple(settings.columns or ()),
                settings.slot_column,
            )
        )

    def close(self) -> None:
        self._table = None
        self._database.close()

    def open(self) -> TargetTable:
        """Look at the table, and make the ledger's if it is missing."""
        with self._database.transaction() as transaction:
            table = self.described(transaction)
        self._ledger.make_sure(self._database)
        self._table = table
        return table

    def described(self, transaction: Transaction) -> TargetTable:
        """What the table is like now. Raises `SinkRefused` if it does not fit the settings."""
        settings = self._settings
        table = TargetTable(
            describe(transaction, settings.table, settings.schema_name),
            sa.table(settings.table, schema=settings.schema_name),
            transaction.dialect,
            transaction.compiler,
            key=settings.key,
            slot_column=settings.slot_column,
        )
        table.refuse_unless_fitting(tuple(settings.columns or ()))
        return table

    def _look_again(self, transaction: Transaction) -> TargetTable:
        self._table = self.described(transaction)
        return self._table

    def _refuse_redo(self, delivery: Delivery) -> None:
        settings = self._settings
        if delivery.redo and not settings.key and settings.slot_column is None:
            raise SinkRefused(
                f"cannot store {delivery.partition} again in {settings.describe()}: nothing tells "
                "which of its rows came from that partition",
                hint="set slot_column, or key, and make sure that earlier rows have it",
            )

    def _delete_earlier(self, transaction: Transaction, delivery: Delivery) -> None:
        settings = self._settings
        if settings.slot_column is None:
            return
        table = sa.table(
            settings.table, sa.column(settings.slot_column), schema=settings.schema_name
        )
        transaction.run(
            lambda connection: connection.execute(
                table.delete().where(table.c[str(settings.slot_column)] == delivery.partition)
            ),
            f"could not delete the earlier rows of {delivery.partition} in {settings.describe()}",
        )

    @property
    def _address(self) -> str:
        settings = self._settings
        name = full_name(settings.table, settings.schema_name)
        return f"{settings.database_address}/{name}"
