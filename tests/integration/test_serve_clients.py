"""Programs that people have already, in front of the examples: each is what its docs page shows."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
import yaml

from fuploader_dagster.cli.init import write_project
from tests.deployment import REPOSITORY
from tests.integration.test_cli import fuploader
from tests.integration.test_examples import commands, on_free_ports, run, running, ship_until
from tests.servers.asker import popped
from tests.servers.ports import LOOPBACK, answers, free_port, wait_until
from tests.servers.redis import RedisServer
from tests.serving import TOKEN

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
UFOP = """
from fuploader_dagster import from_buffer, processor

def debug(buffer, args, content_type):
    return "hello " + args.get("name", "world")

debugged = processor(route=r"^(?:/(?P<name>\\w+))?$")(from_buffer(debug))
"""


def made(folder: Path, example: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """An example with another pipeline than it has."""
    project = folder / "project"
    write_project(project, example)
    settings = yaml.safe_load((project / "fuploader.yaml").read_text())
    (pipeline,) = settings["pipelines"].values()
    change(pipeline)
    (project / "fuploader.yaml").write_text(yaml.safe_dump(settings))
    return project


@contextmanager
def served(project: Path) -> Iterator[str]:
    """The address of `fuploader serve` of this project."""
    port = free_port()
    with running(f"fuploader serve --port {port}", project) as process:
        wait_until(
            lambda: process.poll() is not None or answers(port),
            seconds=60,
            what="fuploader serve",
            diagnose=(project.parent / "background.log").read_text,
        )
        yield f"http://{LOOPBACK}:{port}"


def test_a_client_of_a_handler_sends_a_command_with_a_file_or_an_address(tmp_path: Path) -> None:
    """`POST /handler?cmd=...&url=...` becomes `POST /files/process?cmd=...&url=...`."""
    project = made(tmp_path, "handlers", lambda pipeline: None)
    (project / "app.py").write_text(UFOP)
    (web,) = on_free_ports(project, "8001")
    with served(project) as address, running(f"python -m http.server {web}", project):
        wait_until(lambda: answers(int(web)), seconds=60, what="the web server", diagnose=str)
        handler = f"{address}/files/process"
        for cmd, said in (("/qq", "hello qq"), ("", "hello world")):
            sent = requests.post(
                handler, b"a file", params={"cmd": cmd}, headers=HEADERS, timeout=60
            )
            url = f"http://{LOOPBACK}:{web}/app.py"
            fetched = requests.post(
                handler, params={"cmd": cmd, "url": url}, headers=HEADERS, timeout=60
            )
            assert (sent.text, fetched.text) == (said, said)
        assert requests.get(f"{address}/health/live", timeout=60).status_code == 200


def hub(address: str) -> Any:
    """The client that the page shows."""
    page = (REPOSITORY / "docs" / "serve.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["Hub"](f"{address}/flow", TOKEN)


def sent_until_full(flow: Any, project: Path) -> dict[str, Any]:
    """What is said then. Each server process looks once a second how much waits."""
    said: list[dict[str, Any]] = []

    def full() -> bool:
        said.append(flow.send([{"rec_id": "more"}]))
        return not said[-1]["status"]

    log = project.parent / "background.log"
    wait_until(full, seconds=60, what="a full queue", diagnose=log.read_text)
    assert "max_backlog is 100" in said[-1]["msg"]
    return said[-1]


def arrived(client: redis.Redis) -> list[dict[str, str]]:
    """The entries in the next stream, without the one that asked for room."""
    return [fields for _, fields in client.xrange("BUFF:flow:out") if fields["rec_id"] != "more"]


def test_a_client_of_a_message_hub_sends_flat_dicts_and_hears_when_it_is_full(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server.url())

    def change(pipeline: dict[str, Any]) -> None:
        del pipeline["sinks"]["rows"]
        pipeline["serve"]["max_backlog"] = 100

    project = made(tmp_path, "stream-to-clickhouse", change)
    entries = [
        {"rec_id": f"r-{n}", "task_for": "tom", "function_type": "f", "data": f"text {n}"}
        for n in range(150)
    ]
    client: redis.Redis = redis_server.client()
    try:
        with served(project) as address:
            flow = hub(address)
            assert flow.send(entries)["data"] == [one["rec_id"] for one in entries]
            full = sent_until_full(flow, project)
            assert (int(full["wait"]) > 0, flow.state("r-7")) == (True, "waiting")
            ship_until(lambda: len(arrived(client)) == 150, project)
            assert flow.state("r-7") == "stored"
            paused = requests.post(f"{address}/flow/pause?reason=x", headers=HEADERS, timeout=60)
            assert paused.json()["now"]["intake"]["paused"]
        (state,) = json.loads(fuploader(project, "status", "--json").stdout)
        assert state["parts"]["intake"]["wanted"] == "paused"
        assert sorted(arrived(client), key=lambda one: int(one["rec_id"][2:])) == entries
    finally:
        client.delete("BUFF:flow:in", "BUFF:flow:out")


def test_a_client_of_a_list_pushes_a_task_and_pops_what_became_of_it(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changes for whoever asks: LPUSH of a task, BRPOP until `end`."""
    monkeypatch.setenv("REDIS_URL", redis_server.url())
    redis_url = {"env": "REDIS_URL"}
    tasks, answers_to = "batch_download_tasks", "batch_download_resp_{task_id}"

    def change(pipeline: dict[str, Any]) -> None:
        pipeline["source"] = {"kind": "redis_list", "url": redis_url, "key": tasks}
        pipeline["notify"] = {"kind": "redis_list", "url": redis_url, "key": answers_to}

    project = made(tmp_path, "downloads", change)
    (web,) = on_free_ports(project, "8002")
    names = ("README.md", "send.py", "asker.py")
    task = {
        "task_id": "t-1",
        "task_info": [{"fn": name, "url": f"http://{LOOPBACK}:{web}/{name}"} for name in names],
    }
    client: redis.Redis = redis_server.client()
    client.lpush(tasks, json.dumps(task))
    ship = "fuploader drain --ship"
    with running(f"python -m http.server {web}", project), running(ship, project):
        start, *files, end = popped(client, "t-1", until="end")
    assert (start, sorted(files), end) == ("start", sorted(names), "end")


def test_a_client_of_a_queue_agent_sends_its_rows_by_pages(tmp_path: Path) -> None:
    """Rows go into the queue by HTTP, and what the handler answers is in the other table."""

    def change(pipeline: dict[str, Any]) -> None:
        pipeline["source"] = {"kind": "embedded", "path": "data/queue"}
        pipeline["serve"] = True

    project = made(tmp_path, "table-to-handler-to-table", change)
    (port,) = on_free_ports(project, "8001")
    prepare, handler, *_ = commands(project)
    run(prepare, project)
    with served(project) as address, running(handler, project):
        wait_until(lambda: answers(int(port)), seconds=60, what="the handler", diagnose=str)
        with closing(sqlite3.connect(project / "shop.sqlite")) as database:
            rows = database.execute("SELECT mid, text FROM source_data").fetchall()

        def send(at: int) -> int:
            page = [{"mid": mid, "text": text} for mid, text in rows[at : at + 50]]
            address_of = f"{address}/entities/messages"
            return requests.post(address_of, json=page, headers=HEADERS, timeout=60).status_code

        with ThreadPoolExecutor(2) as pool:
            assert set(pool.map(send, range(0, len(rows), 50))) == {202}

        def results() -> int:
            with closing(sqlite3.connect(project / "shop.sqlite")) as database:
                (count,) = database.execute("SELECT count(*) FROM doc_ent_map").fetchone()
                return int(count)

        ship_until(lambda: results() == len(rows), project)
