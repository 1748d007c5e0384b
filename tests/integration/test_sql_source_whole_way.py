"""From table to table without Dagster: work off what has no result, until there is nothing more."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fuploader_dagster import SqlSink, SqlTable, run_pipeline
from tests.drains import MARK
from tests.settings import archived_files, pipeline

DONE = {"table": "results", "match": {"doc_id": "mid"}, "again_seconds": 0.001}


def asked(database: Path, *statements: str) -> Sequence[tuple[Any, ...]]:
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        found: list[tuple[Any, ...]] = []
        for statement in statements:
            found = connection.execute(statement).fetchall()
        connection.commit()
        return found


def test_a_table_is_worked_off_into_another_one_as_often_as_it_is_asked_for(
    tmp_path: Path,
) -> None:
    database = tmp_path / "shop.sqlite"
    asked(
        database,
        "CREATE TABLE source_data (mid TEXT PRIMARY KEY, content TEXT)",
        "CREATE TABLE results (doc_id TEXT, found TEXT)",
        "INSERT INTO results VALUES ('m1', 'earlier'), (NULL, 'bad')",
        *(f"INSERT INTO source_data VALUES ('m{n}', 'text {n}')" for n in range(50)),  # noqa: S608
    )
    url = f"sqlite:///{database}"
    settings = pipeline(
        tmp_path,
        source=SqlTable.model_validate(
            {"url": url, "table": "source_data", "skip_done": DONE, "poll_seconds": 0.1}
        ),
        message_format="json",
        name_fields=("mid",),
        sinks={
            "results": SqlSink.model_validate(
                {"url": url, "table": "results", "columns": {"doc_id": "mid", "found": "content"}}
            )
        },
        min_free_bytes=MARK,
    )
    shipped = run_pipeline(settings, until_empty=True)
    assert (shipped.messages, shipped.rows, shipped.failures) == (49, 49, ())
    assert run_pipeline(settings, until_empty=True).messages == 0
    asked(database, "INSERT INTO source_data VALUES ('l1', 'late'), ('n', 'new')")
    asked(database, "DELETE FROM results WHERE doc_id = 'm2'")
    again = run_pipeline(settings, until_empty=True)
    assert (again.messages, again.rows) == (2, 2)  # m2 is stored already
    ids = asked(database, "SELECT count(*), count(DISTINCT doc_id) FROM results")
    assert ids == [(52, 51)]
    assert len(archived_files(tmp_path / "objects")) == 51
