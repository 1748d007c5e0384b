"""Dagster's own classes take over where their private names are not those that were tested."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster_postgres import DagsterPostgresStorage

from fuploader_dagster import dagster_internals, postgres_history, sqlite_history, warm_runs

PROJECT = Path(__file__).parents[3] / "pyproject.toml"
REPLACEMENTS = [
    (sqlite_history.SqliteHistory, DagsterSqliteStorage, "sqlite_history", "SqliteHistory"),
    (
        postgres_history.PostgresHistory,
        DagsterPostgresStorage,
        "postgres_history",
        "PostgresHistory",
    ),
    (warm_runs.WarmRunLauncher, dg.DefaultRunLauncher, "warm_runs", "WarmRunLauncher"),
]


@pytest.mark.parametrize(("used", "dagsters", "module", "name"), REPLACEMENTS)
def test_with_the_tested_version_the_replacement_is_used(
    used: type, dagsters: type, module: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert used.__name__ == name
    assert issubclass(used, dagsters)
    assert dagster_internals.replacement_of(dagsters, module, name) is used
    assert caplog.messages == []


@pytest.mark.parametrize("version", ["1.12.9", "1.14.0", "2.13.1", "1.130.0"])
@pytest.mark.parametrize(("dagsters", "module", "name"), [one[1:] for one in REPLACEMENTS])
def test_with_another_version_dagsters_own_is_used_and_a_warning_says_so(
    dagsters: type, module: str, name: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dagster_internals, "version", lambda _: version)
        assert dagster_internals.replacement_of(dagsters, module, name) is dagsters
    ((_, level, told),) = caplog.record_tuples
    assert level == logging.WARNING
    assert told.startswith(f"{name} is not used with Dagster {version}: ")
    assert f"Dagster's own {dagsters.__name__} takes its place" in told


@pytest.mark.parametrize(
    ("private", "module", "name"),
    [
        ("dagster._core.storage.sqlite_storage._runs_directory", "sqlite_history", "SqliteHistory"),
        ("dagster_postgres.utils.pg_url_from_config", "postgres_history", "PostgresHistory"),
        ("dagster._cli.api._execute_run_command_body", "warm_runs", "WarmRunLauncher"),
    ],
)
def test_where_a_private_name_is_missing_the_class_in_dagster_yaml_is_dagsters(
    private: str, module: str, name: str
) -> None:
    home, _, missing = private.rpartition(".")
    program = (
        f"import {home} as home; del home.{missing}\n"
        f"from fuploader_dagster.{module} import {name} as used\n"
        "print(used.__module__)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(("dagster.", "dagster_postgres."))
    assert f"{name} is not used with Dagster" in done.stderr
    assert missing in done.stderr


def test_the_project_asks_for_the_tested_version() -> None:
    assert f'"dagster>={dagster_internals.TESTED}.' in PROJECT.read_text("utf-8")


def test_dagster_is_not_imported_before_warm_imports_decide_how() -> None:
    program = "import sys, fuploader_dagster.dagster_internals; print('dagster' in sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
