"""Small tables of ours in somebody's database: what is stored, positions, claims.

They are created where they are missing. `fuploader doctor` tries whether that can be done, and
whether they can be used, with statements that change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from fuploader_dagster.contracts.diagnosis import Diagnosis, trouble
from fuploader_dagster.errors import FuploaderError, PermanentError
from fuploader_dagster.resources.sql.connection import Database, Transaction

NAME_CHARACTERS = 190
"""MySQL's keys have at most 3,072 bytes, and a character up to 4."""


def full_name(table: str, schema: str | None) -> str:
    return f"{schema}.{table}" if schema else table


def name_column(
    name: str, most: int = NAME_CHARACTERS, *, primary_key: bool = False
) -> sa.Column[str]:
    """Names differ by case and accents, which most collations of MySQL ignore."""
    exact = sa.String(most, collation="utf8mb4_bin")
    kind = sa.String(most).with_variant(exact, "mysql", "mariadb")
    return sa.Column(name, kind, primary_key=primary_key, nullable=False)


def long_text(name: str) -> sa.Column[str]:
    return sa.Column(
        name, sa.Text().with_variant(sa.Text(1 << 24), "mysql", "mariadb"), nullable=False
    )


class OwnTable:
    """One of them."""

    def __init__(
        self,
        what: str,
        name: str,
        schema: str | None,
        columns: Sequence[sa.Column[Any]],
        *,
        deletes: bool = False,
    ) -> None:
        """`what`: "ledger table", for example. `deletes`: rows are deleted, too."""
        self.name = full_name(name, schema)
        self.table = sa.Table(
            name,
            sa.MetaData(),
            *columns,
            schema=schema,
            mysql_engine="InnoDB",
            mysql_charset="utf8mb4",
        )
        self.called = f"the {what} {self.name}"
        self._deletes = deletes

    def exists(self, transaction: Transaction) -> bool:
        """Raises an error of ours if it is there, and what is done to it cannot be undone."""
        clause = sa.table(self.table.name, schema=self.table.schema)

        def look(connection: sa.Connection) -> tuple[bool, str]:
            there = sa.inspect(connection).has_table(clause.name, clause.schema)
            return there, transaction.dialect.table_trouble(connection, clause) if there else ""

        there, trouble = transaction.run(look, f"could not look for {self.called}")
        if trouble:
            raise transaction.kinds.refused(
                f"{self.called} cannot be used: {trouble}", hint="alter table: InnoDB"
            )
        return there

    def create(self, transaction: Transaction) -> None:
        """Fails if another process creates it at the same moment."""
        transaction.run(
            lambda connection: self.table.create(connection, checkfirst=True),
            f"could not create {self.called}",
        )

    def make_sure(self, database: Database) -> None:
        """Create it if it is missing."""
        with database.transaction(reading=True) as transaction:
            there = self.exists(transaction)
        if not there:
            self._create(database)

    def trials(self) -> Sequence[sa.Executable]:
        """Statements that need the rights that are needed, and change nothing."""
        table = self.table
        nothing = table.select().limit(0)
        same = {column.name: column for column in table.columns if not column.primary_key}
        return [
            nothing,
            table.insert().from_select(list(table.columns.keys()), nothing),
            table.update().where(sa.false()).values(same),
            *([table.delete().where(sa.false())] if self._deletes else []),
        ]

    def examined(self, database: Database, check: str) -> Diagnosis:
        """Whether it can be used, or created."""
        try:
            with database.transaction() as transaction:
                there = self.exists(transaction)
                creatable = there or transaction.may_create_tables(self.table.schema)
        except FuploaderError as error:
            return trouble(check, error)
        if there:
            return tried(database, check, f"table {self.name}", self.trials())
        if not creatable:
            found = f"there is no table {self.name}, and this user may not create one"
            return Diagnosis(check, "warning", found, "let the user create tables, or create it")
        if database.dialect.undoes_ddl:
            try:
                with database.transaction() as transaction:
                    self.create(transaction)  # and rolled back
            except FuploaderError as error:
                return trouble(check, error)
        return Diagnosis(check, "good", f"table {self.name} will be created")

    def _create(self, database: Database) -> None:
        failure = None
        try:
            with database.transaction() as transaction:
                self.create(transaction)
                transaction.commit()
        except PermanentError as error:
            failure = error
        if failure is None:
            return
        with database.transaction() as transaction:
            if not self.exists(transaction):  # or another process was quicker
                raise failure


def tried(
    database: Database, check: str, found: str, statements: Sequence[sa.Executable]
) -> Diagnosis:
    """Whether statements that change nothing work."""

    def execute(connection: sa.Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    try:
        with database.transaction() as transaction:
            transaction.run(execute, "a statement that changes nothing failed")
    except FuploaderError as error:
        return trouble(check, error)
    return Diagnosis(check, "good", found)
