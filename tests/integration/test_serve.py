"""`fuploader serve` on real queues: what is answered 202 is in the queue, whatever it was."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.source import CommittedBatch, Message
from tests.servers.ports import wait_until
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.serving import (
    FLAT,
    Server,
    assert_in_words,
    bodies,
    serving,
    taken,
)

REQUEST_ID = "r\u00e4"


@pytest.fixture(params=["rabbitmq", "embedded", "redis_stream", "redis_list"])
def source(
    request: pytest.FixtureRequest, tmp_path: Path, fresh_queue: Callable[..., str]
) -> dict[str, Any]:
    """The settings of a new queue of each kind."""
    if request.param == "embedded":
        return {"kind": "embedded", "path": str(tmp_path / "queue")}
    if request.param == "rabbitmq":
        broker: RabbitMQServer = request.getfixturevalue("rabbitmq")
        return {"kind": "rabbitmq", "url": broker.url, "queue": fresh_queue()}
    redis: RedisServer = request.getfixturevalue("redis_server")
    name = f"serve-{tmp_path.name}"
    key = "stream" if request.param == "redis_stream" else "key"
    return {"kind": request.param, "url": redis.url(), key: name}


def test_one_a_list_and_lines_are_in_the_queue_as_they_were_sent(
    tmp_path: Path, source: dict[str, Any]
) -> None:
    with serving(tmp_path, "--workers", "2", source=source) as server:
        one = b'{"rec_id": "one",  "n": 1.0, "big": 123456789012345678901234567890}'
        assert server.publish(one).json() == {"ids": ["one"]}
        answer = server.publish_json(FLAT)
        assert (answer.status_code, answer.json()) == (202, {"ids": ["1", "2", "3"]})
        lines = b'{"rec_id": "l1"}\n\n  {"rec_id": "l2", "x": "\xc3\xa4"}\r\n'
        assert server.publish(lines, "application/x-ndjson").json() == {"ids": ["l1", "l2"]}
        expected = [one, *(json.dumps(flat).encode() for flat in FLAT)]
        expected += [b'{"rec_id": "l1"}', b'{"rec_id": "l2", "x": "\xc3\xa4"}']
        assert Counter(bodies(server.pipeline.source)) == Counter(expected)


@pytest.mark.parametrize("kind", ["header", "item"])
def test_what_is_sent_again_is_published_once_whichever_process_takes_it(
    tmp_path: Path, kind: str
) -> None:
    """Many at once, over two processes; some may be told to come again in a moment."""
    with serving(tmp_path, "--workers", "2") as server:
        headers = {"Idempotency-Key": "one"} if kind == "header" else {}

        def publish(_: int) -> int:
            return server.publish_json(FLAT, headers=headers).status_code

        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(publish, range(40)))
        assert found <= {202, 409}
        assert server.publish_json(FLAT, headers=headers).json() == {"ids": ["1", "2", "3"]}
        assert len(bodies(server.pipeline.source)) == len(FLAT)


def test_an_id_is_remembered_across_a_restart_and_a_key_is_for_one_body(tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "k"}
    raw = {"message_format": "raw"}
    with serving(tmp_path, **raw) as server:
        first = server.publish(b"\x00\xff", headers=headers).json()
        assert server.publish(b"\x00\xff").json() != first
    with serving(tmp_path, **raw) as server:
        assert server.publish(b"\x00\xff", headers=headers).json() == first
        other = server.publish(b"another", headers=headers)
        assert (other.status_code, "another body" in other.json()["error"]) == (422, True)
        found = taken(server.pipeline.source)
        assert [one.body for one in found] == [b"\x00\xff"] * 2
        assert found[0].message_id == first["ids"][0]


def test_without_memory_the_same_key_still_gives_the_same_ids(tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "k"}
    with serving(tmp_path, message_format="raw", serve={"remember_ids": 0}) as server:
        first = server.publish(b"1", headers=headers).json()
        assert server.publish(b"1", headers=headers).json() == first
        assert bodies(server.pipeline.source) == [b"1", b"1"]
        assert not server.pipeline.layout.accepted.exists()


def test_chosen_headers_go_along(tmp_path: Path) -> None:
    with serving(
        tmp_path, message_format="raw", serve={"headers": ["Content-Type", "X-Request-Id"]}
    ) as server:
        server.publish(
            b"1", "text/plain", headers={"X-Request-Id": "r\u00e4".encode(), "X-No": "n"}
        )
        (message,) = taken(server.pipeline.source)
        with closing(server.pipeline.source.source(prefetch=10)) as queue:
            described = queue.describe(message)
        assert described["headers"] == {"content-type": "text/plain", "x-request-id": REQUEST_ID}


def test_an_envelope_pipeline_takes_envelopes_payloads_and_anything_else(tmp_path: Path) -> None:
    with serving(tmp_path, message_format="envelope") as server:
        assert server.publish_json({"rec_id": "a", "payload": {"x": 1}}).json() == {"ids": ["a"]}
        assert server.publish_json({"rec_id": "b", "task_for": "t"}).json() == {"ids": ["b"]}
        (named,) = server.publish(b"\xff\x00 no text").json()["ids"]
        broken = {"rec_id": "c", "compression": "gzip", "payload": "no base64"}
        assert server.publish_json(broken).status_code == 422
        found = {}
        for body in bodies(server.pipeline.source):
            envelope = json.loads(body)
            packed = base64.b64decode(envelope["payload"])
            found[envelope["rec_id"]] = gzip.decompress(packed)
        assert found.pop("a") == b'{"x":1}'
        assert json.loads(found.pop("b")) == {"rec_id": "b", "task_for": "t"}
        assert found == {named: b"\xff\x00 no text"}


def test_lists_or_objects_are_refused_where_flat_is_asked(tmp_path: Path) -> None:
    with serving(tmp_path, serve={"flat": True}) as server:
        assert server.publish_json(FLAT).status_code == 202
        for nested in ({"rec_id": "n", "x": {}}, {"rec_id": "n", "x": []}):
            answer = server.publish_json([*FLAT, nested])
            assert answer.status_code == 422
            assert "message 4 of 4" in answer.json()["error"]
        assert len(bodies(server.pipeline.source)) == len(FLAT)


def test_what_the_queue_already_has_too_much_of_is_refused_until_it_has_less(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, serve={"max_backlog": 5}) as server:
        assert server.publish_json(FLAT).status_code == 202
        assert server.publish_json([{"rec_id": n} for n in range(10, 20)]).status_code == 202
        refused = server.publish_json({"rec_id": "more"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "max_backlog is 5" in refused.json()["error"]
        source = server.pipeline.source
        with closing(source.source(prefetch=100)) as queue:
            queue.open()
            messages = queue.receive(100, 10)
            assert len(messages) == 13
            queue.settle(committed(messages))
        wait_until(
            lambda: server.publish_json({"rec_id": "more"}).status_code == 202,
            seconds=60,
            what="room in the queue",
            diagnose=server.log.read_text,
        )


def committed(messages: list[Message]) -> CommittedBatch:
    return CommittedBatch(messages[-1], len(messages))


def test_a_broker_that_is_killed_meanwhile_loses_nothing_that_was_confirmed(
    tmp_path: Path, rabbitmq: RabbitMQServer, fresh_queue: Callable[..., str]
) -> None:
    """Confirmed is in the queue; everything else was answered 503, and some of it is there too."""
    source = {"kind": "rabbitmq", "url": rabbitmq.url, "queue": fresh_queue()}
    rabbitmq.sync_definitions()
    confirmed: set[str] = set()
    refused: Counter[int] = Counter()
    stop = threading.Event()
    with serving(tmp_path, "--workers", "2", source=source) as server:

        def publish(lane: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                name = f"{lane}-{number}"
                answer = server.publish_json({"rec_id": name})
                if answer.status_code == 202:
                    confirmed.add(name)
                else:
                    refused[answer.status_code] += 1
                    assert int(answer.headers["retry-after"]) > 0
                    assert_in_words(answer.content)

        with ThreadPoolExecutor(8) as pool:
            lanes = [pool.submit(publish, lane) for lane in range(8)]
            try:
                wait_for_more(confirmed, server)
                rabbitmq.kill()
                wait_until(
                    lambda: refused[503] > 20,
                    seconds=60,
                    what="refusals",
                    diagnose=server.log.read_text,
                )
            finally:
                rabbitmq.start()
            wait_for_more(confirmed, server)
            stop.set()
            for lane in lanes:
                lane.result()
        assert set(refused) == {503}
        found = {json.loads(body)["rec_id"] for body in bodies(server.pipeline.source)}
        assert confirmed <= found


def wait_for_more(confirmed: set[str], server: Server) -> None:
    before = len(confirmed)
    wait_until(
        lambda: len(confirmed) > before + 50,
        seconds=120,
        what="confirmed messages",
        diagnose=server.log.read_text,
    )
