"""A code server whose cleanup thread died ends itself, or gets a new thread."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from fuploader_dagster.dagster_internals import code_server as watching
from fuploader_dagster.dagster_internals.code_server import EXIT_CODE, THREAD
from tests.servers.ports import answers, free_port, wait_until
from tests.settings import embedded_parts

LOCATION = """
    import threading
    from pathlib import Path
    from dagster._grpc.server import DagsterApiServer
    from sqlalchemy.exc import OperationalError

    asked, away = DagsterApiServer._check_for_orphaned_runs, Path("database-is-away")

    def ask(server):
        if away.exists():
            away.rename("it-was-away")
            raise OperationalError("select 1", {}, Exception("server closed the connection"))
        asked(server)
        if Path("it-was-away").exists():
            Path("asked-again").touch()

    DagsterApiServer._check_for_orphaned_runs = ask
    from fuploader_dagster.code_location import defs
"""
SECONDS = 120


@contextmanager
def code_server(folder: Path, where: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A code server whose storage is away once, when the file `database-is-away` is made."""
    (folder / "location.py").write_text(textwrap.dedent(LOCATION))
    configuration = {
        "storage_root": str(folder / "data"),
        "pipelines": {"docs": embedded_parts(folder)},
    }
    (folder / "fuploader.yaml").write_text(yaml.safe_dump(configuration))
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "dagster", "api", "grpc", "-f", "location.py", *where],
            cwd=folder,
            env=environment,
            stderr=log,
            stdout=log,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def lose_the_database(folder: Path) -> None:
    (folder / "database-is-away").touch()
    wait_until(
        (folder / "it-was-away").exists,
        seconds=SECONDS,
        what="the thread to ask",
        diagnose=(folder / "log").read_text,
    )


def test_a_code_server_whose_cleanup_thread_died_ends_itself(tmp_path: Path) -> None:
    port = free_port()
    with code_server(tmp_path, ["-h", "127.0.0.1", "-p", str(port)]) as server:
        wait_until(
            lambda: answers(port),
            seconds=SECONDS,
            what="the code server",
            diagnose=(tmp_path / "log").read_text,
        )
        lose_the_database(tmp_path)
        assert server.wait(SECONDS) == EXIT_CODE
    assert f"the thread {THREAD} of this code server died" in (tmp_path / "log").read_text()


def test_one_that_nobody_would_start_again_gets_a_new_thread_and_still_ends_in_order(
    tmp_path: Path,
) -> None:
    socket = tmp_path / "socket"
    with code_server(tmp_path, ["--socket", str(socket)]) as server:
        wait_until(
            socket.exists,
            seconds=SECONDS,
            what="the code server",
            diagnose=(tmp_path / "log").read_text,
        )
        lose_the_database(tmp_path)
        wait_until(
            (tmp_path / "asked-again").exists,
            seconds=SECONDS,
            what="the new thread to ask",
            diagnose=(tmp_path / "log").read_text,
        )
        server.terminate()
        assert server.wait(SECONDS) == 0


def test_a_thread_that_is_just_being_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_start_joinable_thread"  # since Python 3.13
    name = name if hasattr(threading, name) else "_start_new_thread"
    start, starting, go_on, over = getattr(threading, name), *(threading.Event() for _ in range(3))

    def start_late(bootstrap: Any, *more: Any, **options: Any) -> Any:
        if bootstrap.__self__.name == THREAD:
            starting.set()
            go_on.wait(SECONDS)
        return start(bootstrap, *more, **options)

    def sleep(seconds: float) -> None:
        """What is looked for is not there yet."""
        go_on.set()
        time.sleep(seconds)

    monkeypatch.setattr(threading, name, start_late)
    monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=sleep))
    thread = threading.Thread(target=over.wait, name=THREAD)
    starter = threading.Thread(target=thread.start)
    starter.start()
    try:
        assert starting.wait(SECONDS)
        found = watching._cleanup_thread()
        assert found is thread
        assert found.is_alive()
    finally:
        go_on.set()
        starter.join()
        over.set()
        thread.join()
