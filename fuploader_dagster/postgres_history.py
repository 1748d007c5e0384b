"""Dagster's history in Postgres, with few connections and few statements. Chosen in dagster.yaml:

    storage:
      custom:
        module: fuploader_dagster.postgres_history
        class: PostgresHistory
        config:
          postgres_db:
            hostname: {env: DAGSTER_POSTGRES_HOST}
            username: {env: DAGSTER_POSTGRES_USER}
            password: {env: DAGSTER_POSTGRES_PASSWORD}
            db_name: {env: DAGSTER_POSTGRES_DB}

`config` is that of Dagster's `storage: postgres`. It needs the extra `dagster-postgres`, and uses
private names of Dagster (`dagster_internals`). With a version of Dagster that was not tested it is
Dagster's own storage. Either reads what the other wrote.
"""

from __future__ import annotations

from fuploader_dagster.dagster_internals import replacement_of
from fuploader_dagster.errors import ConfigError

try:
    from dagster_postgres import DagsterPostgresStorage
except ImportError as error:
    raise ConfigError(
        f"PostgresHistory in dagster.yaml needs a package that is not installed: {error}",
        hint="pip install 'fuploader-dagster[dagster-postgres]'",
    ) from error

PostgresHistory = replacement_of(DagsterPostgresStorage, "postgres_history", "PostgresHistory")
