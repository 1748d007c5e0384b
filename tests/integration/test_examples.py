"""Projects of `fuploader init --example`: the commands of their README do what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.cli.init import EXAMPLES, write_project
from fuploader_dagster.errors import ConfigError
from tests.integration.test_cli import fuploader
from tests.servers.ports import answers, free_port, wait_until
from tests.serving import TOKEN
from tests.settings import archived_files

SHIP = "fuploader drain --ship"
SHELL = "/bin/sh"


def commands(project: Path) -> list[str]:
    """Those that the README shows, in their order."""
    text = re.sub(r"```.*?```", "", (project / "README.md").read_text(), flags=re.DOTALL)
    lines = text.splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]


def environment() -> dict[str, str]:
    """Commands are those of this Python."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "FUPLOADER_SERVE_TOKEN": TOKEN}


@contextmanager
def running(command: str, project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """In the background; ended as by Ctrl-C."""
    log = project.parent / "background.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [SHELL, "-c", f"exec {command.removesuffix('&')}"],
            cwd=project,
            env=environment(),
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def ship_until(done: Callable[[], bool], project: Path) -> None:
    with running(SHIP, project):
        log = project.parent / "background.log"
        wait_until(done, seconds=200, what=SHIP, diagnose=log.read_text)


def run(command: str, project: Path) -> str:
    answer = subprocess.run(
        [SHELL, "-c", command],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def test_handlers(tmp_path: Path) -> None:
    project = tmp_path / "handlers"
    write_project(project, "handlers")
    serve_port = on_free_ports(project, "8080", "8001")[0]
    process, first, second, ship, ls, *over_http = commands(project)
    assert ship == SHIP
    assert len(json.loads(run(process, project))) == 3
    assert "has confirmed app.py, send.py, README.md" in run(first, project)
    assert "has confirmed README.md" in run(second, project)
    store = project / "data/object-store"
    ship_until(lambda: len(archived_files(store)) >= 8, project)
    files = {name: content for name, (content,) in archived_files(store).items()}
    results = [content for name, content in files.items() if name.startswith("results/")]
    readme = (project / "README.md").read_bytes()
    assert readme.upper() in results  # the same file as one of the others, for another function
    assert sum(content.startswith(b"{") for content in results) == 3
    assert len(run(ls, project).splitlines()) == len(files) == 8
    asked_over_http(project, serve_port, over_http)


def asked_over_http(project: Path, port: str, shown: list[str]) -> None:
    """The part of the README about `fuploader serve`."""
    export, serve, web, body, url, later = shown
    assert (export[:28], serve[-1], web[-1]) == ("export FUPLOADER_SERVE_TOKEN", "&", "&")
    with running(serve, project), running(web, project):
        served(project, port)
        app, readme = (project / "app.py").read_text(), (project / "README.md").read_text()
        assert sum(json.loads(run(body, project)).values()) <= len(app.split())
        assert run(url, project) == readme.upper()
        (name,) = json.loads(run(later, project))["ids"]
        store = project / "data/object-store"
        ship_until(lambda: f"results/{name}" in archived_files(store), project)
        assert archived_files(store)[f"results/{name}"] == [app.upper().encode()]


def served(project: Path, port: str) -> None:
    """Wait until the front door takes connections."""
    wait_until(
        lambda: answers(int(port)),
        seconds=60,
        what="fuploader serve",
        diagnose=(project.parent / "background.log").read_text,
    )


def on_free_ports(project: Path, *ports: str) -> list[str]:
    """Replace these ports in the project's files by free ones."""
    free = [str(free_port()) for _ in ports]
    for path in project.iterdir():
        if path.is_file():
            text = path.read_text()
            for old, new in zip(ports, free, strict=True):
                text = text.replace(old, new)
            path.write_text(text)
    return free


def test_table_to_handler_to_table(tmp_path: Path) -> None:
    project = tmp_path / "table"
    write_project(project, "table-to-handler-to-table")
    on_free_ports(project, "8001")
    prepare, handler, doctor, ship, show = commands(project)
    assert (handler[-1], ship) == ("&", SHIP)
    run(prepare, project)

    def results() -> list[tuple[str, str]]:
        with closing(sqlite3.connect(project / "shop.sqlite")) as database:
            return list(database.execute("SELECT * FROM doc_ent_map ORDER BY 1"))

    with running(handler, project):
        wait_until(
            lambda: " takes connections" in fuploader(project, "doctor").stdout,
            seconds=60,
            what="the handler",
            diagnose=(tmp_path / "background.log").read_text,
        )
        assert "200 rows wait" in run(doctor, project)
        ship_until(lambda: len(results()) == 200, project)
    assert results()[3] == ("doc-003", "Lima,Lisbon")
    assert run(show, project).startswith("200 ")
    assert "0 rows wait" in fuploader(project, "doctor").stdout


def test_downloads(tmp_path: Path) -> None:
    project = tmp_path / "downloads"
    write_project(project, "downloads")
    ports = on_free_ports(project, "8002", "8003")
    origin, asker, fetch, send, ship, ls, letters = commands(project)
    assert (origin[-1], asker[-1], ship) == ("&", "&", SHIP)
    log = tmp_path / "background.log"
    store = project / "data/object-store/tasks"

    def told() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]

    with running(origin, project), running(asker, project):
        for port in ports:
            wait_until(
                lambda port=port: answers(int(port)), seconds=60, what=port, diagnose=log.read_text
            )
        one = subprocess.run(
            [SHELL, "-c", fetch],
            cwd=project,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert one.returncode == 4, one.stderr
        assert "missing.txt" in one.stdout + one.stderr
        assert (project / "fetched/sender.py").read_bytes() == (project / "send.py").read_bytes()
        assert "has confirmed tasks: 5" in run(send, project)
        ship_until(lambda: sum(one["event"] == "end" for one in told()) == 5, project)
    for number in range(5):
        events = [one["event"] for one in told() if one["task"]["task_id"] == f"task-{number}"]
        assert events == ["start", "item", "item", "item", "end"]
        (archive,) = (store / f"task-{number}").iterdir()
        with zipfile.ZipFile(archive) as opened:
            results = [name for name in opened.namelist() if name.startswith("results/")]
            assert results == [f"results/{name}" for name in ("README.md", "send.py", "asker.py")]
            for name in results:
                assert opened.read(name) == (project / Path(name).name).read_bytes()
    assert run(ls, project).count("results/asker.py") == 5
    assert "5 × 1 of its parts failed and 3 have results: missing.txt" in run(letters, project)


def test_stream_to_clickhouse_says_which_servers_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REDIS_URL", "CLICKHOUSE_URL"):
        monkeypatch.delenv(name, raising=False)
    answer = fuploader(tmp_path, "init", "flow", "--example", "stream-to-clickhouse")
    assert answer.returncode == 0
    assert "README.md has what it needs" in answer.stdout
    needs = (tmp_path / "flow/README.md").read_text()
    assert all(
        one in needs for one in ("Redis 6.2", "REDIS_URL", "ClickHouse 23.3", "[clickhouse]")
    )
    missing = fuploader(tmp_path / "flow", "doctor")
    assert missing.returncode == 4
    for name in ("REDIS_URL", "CLICKHOUSE_URL"):
        assert f"environment variable {name} is not set" in missing.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_project_passes_its_own_tests(example: str, tmp_path: Path) -> None:
    files = write_project(tmp_path / "new", example)
    modules = [path.stem for path in files if path.suffix == ".py" and path.parent.name == "new"]
    assert f"py-modules = {json.dumps(modules)}" in (tmp_path / "new/pyproject.toml").read_text()
    if (tmp_path / "new/tests").exists():
        run("python -m pytest -q -p no:cacheprovider", tmp_path / "new")


def test_an_unknown_example_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no example 'x'") as caught:
        write_project(tmp_path / "new", "x")
    assert all(name in str(caught.value) for name in EXAMPLES)
    assert not (tmp_path / "new").exists()
