"""Dagster's history in SQLite, for a fraction of the CPU and of the syncs. Chosen in dagster.yaml:

    storage:
      custom:
        module: fuploader_dagster.sqlite_history
        class: SqliteHistory
        config: {base_dir: .dagster/storage}

It uses private names of Dagster (`dagster_internals`). With a version of Dagster that was not
tested it is Dagster's own storage. Either reads what the other wrote.
"""

from __future__ import annotations

from dagster._core.storage.sqlite_storage import DagsterSqliteStorage

from fuploader_dagster.dagster_internals import replacement_of

SqliteHistory = replacement_of(DagsterSqliteStorage, "sqlite_history", "SqliteHistory")
