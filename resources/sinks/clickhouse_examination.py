"""Examines a table for `fuploader doctor`: whether rows can be stored in it once, and again.

What must always hold: nothing is changed. Rights are tried with statements that change no row, or
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis, trouble
from fuploader_dagster.errors import FuploaderError, SinkUnavailable
from fuploader_dagster.resources.sinks.clickhouse_errors import ALLOW
from fuploader_dagster.resources.sinks.clickhouse_server import Server
from fuploader_dagster.resources.sinks.clickhouse_table import Table, quoted

_WINDOW = "non_replicated_deduplication_window"


def examine(
    server: Server, look: Callable[[], Table], columns: Sequence[str]
) -> Iterator[Diagnosis]:
    """`columns`: those that rows are known to have. Raises an error of this package if there is no
    such table, or no way to it."""
    version = server.query("SELECT version()", "could not ask for the version")[0][0]
    yield Diagnosis("server", "good", f"ClickHouse {version} at {server.where}")
    table = look()
    found = f"{table.name}: {counted(len(table.columns), 'column')}, engine {table.engine}"
    yield Diagnosis("table", "good", found)
    odd = [name for name in columns if table.columns[name].kind is None]
    for name in odd:
        found = f"column {name} has the type {table.columns[name].type_name}"
        yield Diagnosis("columns", "wrong", found, "store that in a column of another type")
    yield _tried(server, "rows", "rows can be inserted and counted", _trials(table, columns))
    yield _deletion(server, table)
    if table.deduplicates is False:
        yield Diagnosis(
            "tokens",
            "warning",
            f"{table.name} does not remember the tokens of INSERTs: one that reaches the server "
            "after the attempt that followed it is stored twice",
            f"ALTER TABLE {table.name} MODIFY SETTING {_WINDOW} = 1000",
        )


def _trials(table: Table, columns: Sequence[str]) -> Sequence[str]:
    slot = quoted(table.slot_column)
    known = list(dict.fromkeys([*columns, table.slot_column]))
    names = ", ".join(map(quoted, known))
    types = [table.columns[name].type_name.replace("\\", "\\\\") for name in known]
    values = ", ".join(
        "defaultValueOfTypeName('{}')".format(one.replace("'", "\\'")) for one in types
    )
    return [
        f"SELECT {slot} FROM {table.quoted} LIMIT 0",  # noqa: S608
        f"INSERT INTO {table.quoted} ({names}) SELECT {values} WHERE 0",
    ]


def _tried(server: Server, check: str, found: str, statements: Sequence[str]) -> Diagnosis:
    try:
        for statement in statements:
            server.command(statement, "a statement that changes nothing failed")
    except FuploaderError as error:
        return trouble(check, error)
    return Diagnosis(check, "good", found)


def _deletion(server: Server, table: Table) -> Diagnosis:
    try:
        found = server.query(
            f"CHECK GRANT ALTER DELETE ON {table.quoted}", "could not ask for the rights"
        )
    except SinkUnavailable as error:  # a server that is older than the statement
        return Diagnosis(
            "redo", "warning", f"whether earlier rows can be deleted: {error.message}", ALLOW
        )
    except FuploaderError as error:
        return trouble("redo", error)
    if found and int(found[0][0]) == 1:
        return Diagnosis("redo", "good", "earlier rows can be deleted")
    return Diagnosis("redo", "wrong", "the right to delete rows is missing", ALLOW)
