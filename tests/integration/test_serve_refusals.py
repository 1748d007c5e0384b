"""`fuploader serve` where its queue refuses it, or it starts slowly, and pauses in an address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.ports import wait_until
from tests.servers.queue_fixtures import channel
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.serving import Server, serving

SLOW = """
import sys, time
if "spawn_main" in " ".join(sys.orig_argv):
    time.sleep(8)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


def test_a_queue_that_refuses_us_is_503_with_what_to_do_until_somebody_did_it(
    tmp_path: Path, rabbitmq: RabbitMQServer
) -> None:
    queue = "made-later"
    source = {"kind": "rabbitmq", "url": rabbitmq.url, "queue": queue, "declare": False}
    with serving(tmp_path, source=source) as server:
        for _ in range(3):  # the first asks the broker, those soon after it do not
            refused = server.publish_json({"rec_id": "a"})
            assert refused.status_code == 503, refused.text
            assert int(refused.headers["retry-after"]) > 0
            assert "create the queue" in refused.json()["hint"]
        (found,) = server.ask("GET", "/health/ready").json()["pipelines"]
        assert any(one.startswith("queue: ") for one in found["troubles"])
        assert "ERROR" not in server.log.read_text()
        with channel(rabbitmq) as opened:
            opened.queue_declare(queue, durable=True)
        wait_until(
            lambda: server.publish_json({"rec_id": "a"}).status_code == 202,
            seconds=60,
            what="the queue",
            diagnose=server.log.read_text,
        )


def test_a_state_store_that_refuses_us_is_said_and_holds_up_neither_messages_nor_a_pause(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    state = {"kind": "redis", "url": redis_server.url_of("default", "wrong-and-secret")}
    with serving(tmp_path, state=state) as server:
        assert server.publish_json({"rec_id": "a"}).status_code == 202
        ready = server.ask("GET", "/health/ready")
        assert ready.status_code == 503
        (found,) = ready.json()["pipelines"]
        assert any(one.startswith("state store: ") for one in found["troubles"])
        paused = server.ask("POST", "/docs/pause?reason=x")  # obeyed on this node
        assert paused.json()["now"]["intake"]["paused"], paused.text
        assert "check user and password" in paused.json()["trouble"]
        assert "secret" not in paused.text + ready.text + server.log.read_text()


def test_server_processes_that_start_slowly_are_waited_for(tmp_path: Path) -> None:
    """As on a busy machine: each takes longer than uvicorn would wait for it by itself."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW)
    with serving(tmp_path, "--workers", "2", environment={"PYTHONPATH": str(slow)}) as server:
        assert server.publish_json({"rec_id": "a"}).status_code == 202
        assert "died" not in server.log.read_text()


def test_a_pause_may_stand_in_the_address(server: Server) -> None:
    path = "/docs/pause?reason=the%20index%20is%20rebuilt&by=night%20shift&parts=intake"
    now = server.ask("POST", path).json()["now"]
    assert (now["intake"]["paused"], now["shipping"]["paused"]) == (True, False)
    assert (now["intake"]["reason"], now["intake"]["by"]) == ("the index is rebuilt", "night shift")
    now = server.ask("POST", "/docs/resume?parts=intake&parts=shipping").json()["now"]
    assert (now["intake"]["paused"], now["shipping"]["paused"]) == (False, False)


def test_of_a_pause_what_the_body_says_counts(server: Server) -> None:
    path = "/docs/pause?reason=of+the+address&by=me"
    body = {"reason": "of the body", "parts": ["shipping"]}
    now = server.ask("POST", path, json=body).json()["now"]
    assert (now["shipping"]["reason"], now["shipping"]["by"]) == ("of the body", "me")
    assert server.ask("POST", "/docs/resume").json()["now"]["shipping"]["paused"] is False


@pytest.mark.parametrize("query", ["part=intake", "parts=all", "parts=", "parts=intake,shipping"])
def test_a_pause_that_cannot_be_understood_pauses_nothing(server: Server, query: str) -> None:
    refused = server.ask("POST", f"/docs/pause?{query}")
    assert refused.status_code == 400, refused.text
    assert "cannot be understood" in json.loads(refused.content)["error"]
    now = server.ask("POST", "/docs/resume").json()
    assert not any(one["paused"] for one in now["before"].values())
