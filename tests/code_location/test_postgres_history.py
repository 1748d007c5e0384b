"""Dagster's history in Postgres: the same as with Dagster's own storage, with few statements, and
after an outage."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.errors import DagsterInvariantViolationError
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from fuploader_dagster.dagster_internals import postgres_history
from fuploader_dagster.dagster_internals.postgres_history import PostgresHistory, with_driver
from tests.code_location.test_freshness import assert_archives_go_stale_and_are_fresh_again
from tests.code_location.test_sqlite_history import (
    BATCH_VARIABLE,
    found,
    history_of_runs,
    written,
)
from tests.servers.postgresql import PostgresqlServer

OURS = {"module": "fuploader_dagster.postgres_history", "class": "PostgresHistory"}
MAKER = """
import sys, dagster as dg
print("ready", flush=True)
sys.stdin.readline()
instance = dg.DagsterInstance.from_config(sys.argv[1])
instance.add_dynamic_partitions("slots", [sys.argv[2]])
"""


@pytest.fixture
def history_database(postgresql: PostgresqlServer) -> Iterator[str]:
    """The address of a new database, without a driver, as people write it."""
    name = f"history_{secrets.token_hex(4)}"
    postgresql.execute(f"CREATE DATABASE {name}")
    yield f"{postgresql.url().rpartition('/')[0]}/{name}"
    postgresql.execute(f"DROP DATABASE {name} WITH (FORCE)")


def home(folder: Path, address: str, *, ours: bool = True) -> Path:
    """A folder with a dagster.yaml."""
    folder.mkdir(exist_ok=True)
    theirs = {"postgres": {"postgres_url": with_driver(address)}}
    storage = {"custom": {**OURS, "config": {"postgres_url": address}}} if ours else theirs
    (folder / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
    return folder


def opened(folder: Path, address: str, *, ours: bool = True) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(home(folder, address, ours=ours)))


def test_what_one_storage_wrote_the_other_reads(tmp_path: Path, history_database: str) -> None:
    with opened(tmp_path, history_database, ours=False) as before:
        written(before, 2)
    with opened(tmp_path, history_database) as ours:
        assert isinstance(ours.get_ref().storage, PostgresHistory)
        assert found(ours) == (2, 2)
        written(ours, 3)
        assert found(ours) == (3, 5)
    with opened(tmp_path, history_database, ours=False) as after:
        assert found(after) == (3, 5)


def test_archives_go_stale_and_are_fresh_again(
    tmp_path: Path, history_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(tmp_path, history_database) as one:
        assert_archives_go_stale_and_are_fresh_again(tmp_path, one)


def test_a_run_leaves_the_same_history_as_with_dagsters_own(
    tmp_path: Path, postgresql: PostgresqlServer
) -> None:
    told = {}
    for name in ("ours", "theirs"):
        postgresql.execute(f"CREATE DATABASE {name}")
        address = f"{postgresql.url().rpartition('/')[0]}/{name}"
        with (
            pytest.MonkeyPatch.context() as patch,
            opened(tmp_path / name, address, ours=name == "ours") as one,
        ):
            if name == "theirs":
                patch.delenv(BATCH_VARIABLE, raising=False)
            told[name] = history_of_runs(one)
    assert told["ours"] == told["theirs"]


def test_a_run_takes_a_fraction_of_the_statements_and_one_connection(
    tmp_path: Path, postgresql: PostgresqlServer
) -> None:
    statements, connections = {}, {}
    for name in ("few", "many"):
        postgresql.execute(f"CREATE DATABASE {name}")
        address = f"{postgresql.url().rpartition('/')[0]}/{name}"
        with (
            opened(tmp_path / name, address, ours=name == "few") as one,
            pytest.MonkeyPatch.context() as patch,
            Counted() as counted,
        ):
            if name == "many":
                patch.delenv(BATCH_VARIABLE, raising=False)
            history_of_runs(one)
        statements[name], connections[name] = counted.statements, counted.connections
    assert connections["many"] > 100, "else this storage has lost its reason"
    assert connections["few"] <= postgres_history.KEPT_CONNECTIONS
    assert statements["few"] < statements["many"] / 2


class Counted:
    """Statements and connections of SQLAlchemy in this process while it is open."""

    def __enter__(self) -> Counted:
        self.statements = self.connections = 0
        event.listen(Engine, "before_cursor_execute", self._statement)
        event.listen(Engine, "do_connect", self._connection)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "before_cursor_execute", self._statement)
        event.remove(Engine, "do_connect", self._connection)

    def _statement(self, *_: object) -> None:
        self.statements += 1

    def _connection(self, *_: object) -> None:
        self.connections += 1


def test_a_server_that_was_away_is_used_again_by_the_same_process(
    tmp_path: Path, postgresql: PostgresqlServer, history_database: str
) -> None:
    """Stopped, killed, and with connections that somebody cut: what was stored is there."""
    with opened(tmp_path, history_database) as one:
        written(one, 1)
        postgresql.stop()
        with pytest.raises((DagsterPostgresException, OperationalError)):
            one.add_dynamic_partitions("slots", ["while it is away"])
        postgresql.start()
        written(one, 2)
        postgresql.kill()
        postgresql.start()
        written(one, 3)
        postgresql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname LIKE 'history%'"
        )
        written(one, 4)
        assert found(one) == (4, 10)


def test_an_instance_that_is_opened_during_an_outage_fails_and_later_does_not(
    tmp_path: Path, postgresql: PostgresqlServer, history_database: str
) -> None:
    postgresql.stop()
    try:
        with pytest.raises((DagsterPostgresException, OperationalError)):
            opened(tmp_path, history_database)
    finally:
        postgresql.start()
    with opened(tmp_path, history_database) as one:
        written(one, 1)
        assert found(one) == (1, 1)


def test_a_batch_is_stored_as_a_whole_or_not_at_all(
    tmp_path: Path, history_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, history_database) as one:
        written(one, 1)
        (record,) = one.fetch_materializations(dg.AssetKey("a"), limit=10).records
        storage = one.event_log_storage
        with monkeypatch.context() as patch:
            patch.setattr(storage, "_note_assets", _fail)
            with pytest.raises(DagsterInvariantViolationError):
                storage.store_event_batch([record.event_log_entry] * 3)
        assert found(one) == (1, 1)
        storage.store_event_batch([record.event_log_entry] * 3)
        numbers = [r.storage_id for r in one.fetch_materializations(dg.AssetKey("a"), 10).records]
        assert len(set(numbers)) == 4


def _fail(*_: object) -> None:
    raise DagsterInvariantViolationError("in the middle of a batch")


def test_threads_of_two_instances_write_at_the_same_time(
    tmp_path: Path, history_database: str
) -> None:
    with opened(tmp_path, history_database) as one, opened(tmp_path, history_database) as other:

        def write(number: int) -> None:
            instance = (one, other)[number % 2]
            instance.report_runless_asset_event(dg.AssetMaterialization("a", partition=str(number)))

        with ThreadPoolExecutor(12) as threads:
            list(threads.map(write, range(120)))
        assert found(one) == found(other) == (0, 120)


def test_processes_that_make_the_history_at_the_same_moment_all_can(
    tmp_path: Path, history_database: str
) -> None:
    folder = home(tmp_path, history_database)
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, str(folder), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"ready\n"
    told = [maker.communicate(b"\n", timeout=200) for maker in makers]
    assert [maker.returncode for maker in makers] == [0] * 4, told
    with opened(tmp_path, history_database) as one:
        assert sorted(one.get_dynamic_partitions("slots")) == ["0", "1", "2", "3"]


def test_a_child_that_was_forked_has_connections_of_its_own(
    tmp_path: Path, history_database: str
) -> None:
    with opened(tmp_path, history_database) as one:
        written(one, 1)
        child = os.fork()
        if not child:  # it must leave without the clean-up of pytest
            try:
                with dg.DagsterInstance.from_ref(one.get_ref()) as again:
                    again.add_dynamic_partitions("slots", ["child"])
            except BaseException:
                os._exit(1)
            os._exit(0)
        for number in range(50):
            one.add_dynamic_partitions("slots", [str(number)])
        assert os.waitpid(child, 0)[1] == 0
        assert "child" in one.get_dynamic_partitions("slots")


def test_a_killed_process_leaves_every_event(tmp_path: Path, history_database: str) -> None:
    program = (
        "import sys, dagster as dg\n"
        "from tests.code_location.test_sqlite_history import written\n"
        "written(dg.DagsterInstance.from_config(sys.argv[1]), 5)\n"
        "print('written', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(home(tmp_path, history_database))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    with opened(tmp_path, history_database) as after:
        assert found(after) == (5, 5)


def test_what_is_wiped_is_gone_and_what_comes_later_is_kept(
    tmp_path: Path, history_database: str
) -> None:
    with opened(tmp_path, history_database) as one:
        written(one, 2)
        one.wipe()
        assert found(one) == (0, 0)
        written(one, 1)
        assert found(one) == (1, 1)


def test_the_webserver_gets_its_limits(tmp_path: Path, history_database: str) -> None:
    with opened(tmp_path, history_database) as one:
        one.optimize_for_webserver(statement_timeout=1234, pool_recycle=3600, max_overflow=5)
        storages = (one.run_storage, one.event_log_storage, one._schedule_storage)
        engines = {storage._engine for storage in storages}  # type: ignore[attr-defined]
        assert len(engines) == 1, "all storages of a process share their connections"
        with engines.pop().connect() as connection:
            told = connection.exec_driver_sql("show statement_timeout").scalar()
        assert told == "1234ms"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p%40@h:1/d", "postgresql+psycopg2://u:p%40@h:1/d"),
        ("postgresql+psycopg2://u@h/d", "postgresql+psycopg2://u@h/d"),
        (
            "postgresql+psycopg://u@h/d?sslmode=require",
            "postgresql+psycopg2://u@h/d?sslmode=require",
        ),
    ],
)
def test_an_address_gets_the_driver_that_dagster_postgres_is_written_for(
    given: str, used: str
) -> None:
    assert with_driver(given) == used


def test_without_the_extra_the_error_names_it() -> None:
    program = (
        "import sys; sys.modules['dagster_postgres'] = None\n"
        "import fuploader_dagster.postgres_history"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fuploader_dagster.errors.ConfigError: PostgresHistory")
    assert "pip install 'fuploader-dagster[dagster-postgres]'" in last


def test_a_wait_for_a_network_that_swallows_everything_ends(
    tmp_path: Path, history_database: str
) -> None:
    """Without these libpq waits for a quarter of an hour; what the address says goes first."""
    with opened(tmp_path, f"{history_database}?connect_timeout=7") as one:
        storage = one.event_log_storage
        with storage.index_connection() as connection:  # type: ignore[attr-defined]
            used = connection.connection.dbapi_connection.get_dsn_parameters()
    assert used["connect_timeout"] == "7"
    assert 0 < int(used["tcp_user_timeout"]) <= 60_000
    quiet = int(used["keepalives_idle"])
    assert quiet + int(used["keepalives_interval"]) * int(used["keepalives_count"]) <= 60
