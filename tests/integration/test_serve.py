"""`fuploader serve` on real queues: what is answered 202 is in the queue, whatever it was."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest

from fuploader_dagster.contracts.source import CommittedBatch, Message, SourceSettings
from tests.servers.ports import LOOPBACK, answers, wait_until
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.serving import COMMAND, TOKEN, Server, serving, write_configuration

REQUEST_ID = "r\u00e4"
LIST = {"kind": "redis_list", "url": "redis://127.0.0.1:1/0", "key": "never-opened"}
FLAT = [
    {"rec_id": number, "task_for": "tom", "function_type": "f", "data": f"text {number}"}
    for number in range(1, 4)
]


def taken(source: SourceSettings) -> list[Message]:
    """All messages of a queue; they go back to it."""
    found: list[Message] = []
    with closing(source.source(prefetch=50_000)) as queue:
        queue.open()
        while batch := queue.receive(10_000, 1.0):
            found += batch
    return found


def bodies(source: SourceSettings) -> list[bytes]:
    return [one.body for one in taken(source)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an embedded queue, for tests that count nothing."""
    with serving(tmp_path_factory.mktemp("serve"), serve={"max_items": 100}) as running:
        yield running


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


REFUSED = [
    ("POST", "/docs/messages", b"", "", 400),
    ("POST", "/docs/messages", b"no json", "", 422),
    ("POST", "/docs/messages", b"{", "application/json", 400),
    ("POST", "/docs/messages", b'["\xff"]', "application/json", 400),
    ("POST", "/docs/messages", b"[" * 100_000, "application/json", 400),
    ("POST", "/docs/messages", b"[]", "application/json", 400),
    ("POST", "/docs/messages", b"\n\n", "application/jsonl", 400),
    ("POST", "/docs/messages", b'{"rec_id": 1}\n{', "application/jsonl", 400),
    ("POST", "/docs/messages", b'[{"rec_id": 1}, 5]', "application/json", 422),
    ("POST", "/docs/messages", b'{"rec_id": ".."}', "", 422),
    ("POST", "/docs/messages", b'{"rec_id": "a\\u0000b"}', "", 422),
    ("POST", "/docs/messages", b'{"rec_id": "a/b"}', "", 422),
    ("POST", "/docs/messages", b"[%s{}]" % (b"{}," * 100), "application/json", 413),
    ("POST", "/docs/messages/", b"{}", "", 405),
    ("GET", "/docs/messages", b"", "", 405),
    ("PUT", "/docs/messages", b"{}", "", 405),
    ("POST", "/other/messages", b"{}", "", 404),
    ("POST", "/docs%2fmessages", b"{}", "", 202),
    ("POST", "/../docs/messages%00", b"{}", "", 404),
    ("GET", "/docs/../../etc/passwd", b"", "", 404),
    ("GET", "/%00", b"", "", 404),
    ("GET", "/%ff", b"", "", 404),
    ("POST", "/docs/pause", b'{"part": 1}', "", 400),
    ("POST", "/docs/pause", b'{"parts": ["all"]}', "", 400),
    ("POST", "/docs/pause", b'{"parts": []}', "", 400),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]} {case[1]} {case[2][:20]!r}")
def test_what_cannot_be_is_refused_in_words(
    server: Server, case: tuple[str, str, bytes, str, int]
) -> None:
    method, path, body, kind, status = case
    answer = server.ask(method, path, data=body, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert_in_words(answer.content)


def assert_in_words(body: bytes) -> None:
    said = json.loads(body)
    assert said["error"] and "hint" in said
    assert "Traceback" not in said["error"] and "\n" not in said["error"] + said["hint"]


def test_lists_or_objects_are_refused_where_flat_is_asked(tmp_path: Path) -> None:
    with serving(tmp_path, serve={"flat": True}) as server:
        assert server.publish_json(FLAT).status_code == 202
        for nested in ({"rec_id": "n", "x": {}}, {"rec_id": "n", "x": []}):
            answer = server.publish_json([*FLAT, nested])
            assert answer.status_code == 422
            assert "message 4 of 4" in answer.json()["error"]
        assert len(bodies(server.pipeline.source)) == len(FLAT)


def test_a_token_may_do_what_it_was_made_for(tmp_path: Path) -> None:
    rights = {"publish_token": {"env": "PUBLISH"}, "control_token": {"env": "CONTROL"}}
    tokens = {"PUBLISH": "old-publish-token new-publish-token", "CONTROL": "the-control-token"}
    with serving(tmp_path, environment=tokens, serve=rights) as server:

        def status(path: str, token: str | None) -> int:
            return server.ask("POST", path, token=token).status_code

        for token in (TOKEN, "old-publish-token", "new-publish-token"):
            assert status("/docs/messages", token) == 400  # it has no body
        assert status("/docs/messages", "the-control-token") == 403
        assert status("/docs/pause", "new-publish-token") == 403
        for token in (None, "", "wrong", TOKEN + "x", TOKEN[:-1], f"{TOKEN} x"):
            refused = server.ask("POST", "/docs/messages", token=token)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert status("/nobody/messages", token) == 401
            assert server.ask("GET", "/openapi.json", token=token).status_code == 401
        assert server.ask("GET", "/openapi.json", token="the-control-token").status_code == 200
        assert TOKEN not in server.log.read_text()


@pytest.mark.parametrize(
    ("settings", "environment", "arguments", "said"),
    [
        ({}, {"FUPLOADER_SERVE_TOKEN": ""}, [], "set FUPLOADER_SERVE_TOKEN"),
        ({}, {"FUPLOADER_SERVE_TOKEN": "short"}, [], "at least 16"),
        ({"serve": {"read_token": {"env": "NOT_SET"}}}, {}, [], "NOT_SET has no token"),
        ({"serve": {"read_token": "literal"}}, {}, [], "name its environment variable"),
        ({"serve": False}, {}, [], "serve: true"),
        ({"source": LIST, "serve": {"headers": ["X-A"]}}, {}, [], "no place for the headers"),
        ({}, {}, ["--tls-cert", "none.pem"], "none.pem or its key cannot be used"),
        ({}, {}, ["--tls-key", "none.pem"], "no --tls-cert"),
        ({}, {}, ["--root-path", "queue"], "must begin with /"),
        ({}, {}, ["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(
    tmp_path: Path,
    settings: dict[str, Any],
    environment: dict[str, str],
    arguments: list[str],
    said: str,
) -> None:
    write_configuration(tmp_path, **settings)
    done = serve_once(tmp_path, {"FUPLOADER_SERVE_TOKEN": TOKEN, **environment}, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def serve_once(
    folder: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "serve", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_port_in_use_is_said(server: Server, tmp_path: Path) -> None:
    write_configuration(tmp_path)
    done = serve_once(
        tmp_path, {"FUPLOADER_SERVE_TOKEN": TOKEN}, "--port", str(server.port), "--workers", "2"
    )
    assert (done.returncode, "another program uses this port" in done.stderr) == (2, True)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_at_the_end_what_is_in_work_is_answered(
    tmp_path: Path, workers: str, end: signal.Signals
) -> None:
    with serving(tmp_path, "--workers", workers) as server:
        assert server.process is not None
        with socket.create_connection((LOOPBACK, server.port)) as client:
            client.settimeout(60)
            client.sendall(head(b"Content-Length: 15") + b'{"rec_id"')
            server.publish_json(FLAT)  # later than that one: it is in work
            server.process.send_signal(end)
            wait_until(
                lambda: "hutting down" in server.log.read_text(),
                seconds=60,
                what="the end",
                diagnose=server.log.read_text,
            )
            client.sendall(b': "x"}')
            answer = b""
            while more := client.recv(10_000):  # it closes the connection then
                answer += more
        assert b" 202 " in answer and b'{"ids":["x"]}' in answer
        assert server.process.wait(60) == 0
        assert len(bodies(server.pipeline.source)) == len(FLAT) + 1


def head(*lines: bytes, path: bytes = b"/docs/messages", token: str = TOKEN) -> bytes:
    """The head of a request to publish."""
    given = [b"POST %s HTTP/1.1" % path, b"Host: x", b"Authorization: Bearer " + token.encode()]
    return b"\r\n".join([*given, *lines, b"", b""])


CHUNK = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
CLOSE = b"Connection: close"


def answer_to(server: Server, *pieces: bytes) -> bytes:
    """All that the server answers before it closes the connection."""
    found = b""
    with socket.create_connection((LOOPBACK, server.port)) as client:
        client.settimeout(60)
        with suppress(ConnectionError):  # it may have answered, and closed, before it has all
            for piece in pieces:
                client.sendall(piece)
        with suppress(ConnectionError):
            while more := client.recv(65_536):
                found += more
    return found


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([head(b"Content-Length: 1000000000"), b"x" * 100_000], 413),
        ([head(b"Content-Length: " + b"9" * 18), b"x"], 413),
        ([head(b"Content-Length: " + b"9" * 40), b"x"], 400),
        ([head(b"Content-Length: -1"), b"x"], 400),
        ([head(b"Content-Length: 5", b"Content-Length: 6"), b"xxxxxx"], 400),
        ([head(b"Content-Length: 5", b"Transfer-Encoding: chunked"), b"0\r\n\r\n"], 400),
        (
            [head(b"Transfer-Encoding: chunked"), *[b"10000\r\n" + b"x" * 65_536 + b"\r\n"] * 300],
            413,
        ),
        ([head(b"Content-Length: 1000000", token="wrong" * 5), b"x"], 401),
        ([head(b"X: " + b"x" * 100_000, b"Content-Length: 1")], 431),
        ([head(*[b"X-%d: 1" % n for n in range(10_000)])], 431),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], 400),
        ([b"GET / HTTP/9.9\r\n\r\n"], 400),
        (
            [
                head(b"Idempotency-Key: " + b"k" * 300, b"Content-Length: 2", b"Connection: close"),
                b"{}",
            ],
            400,
        ),
    ],
)
def test_hostile_requests_lose_their_connection_with_an_answer_in_words(
    server: Server, pieces: list[bytes], status: int
) -> None:
    answer = answer_to(server, *pieces)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert_in_words(answer.partition(b"\r\n\r\n")[2])
    assert server.publish_json(FLAT).status_code == 202


def test_a_body_that_does_not_come_is_given_up_and_holds_nobody_up(tmp_path: Path) -> None:
    with serving(tmp_path, serve={"body_seconds": 1}) as server:
        with socket.create_connection((LOOPBACK, server.port)) as slow:
            slow.settimeout(60)
            slow.sendall(head(b"Content-Length: 100") + b"{")
            assert server.publish_json(FLAT).status_code == 202
            assert slow.recv(10_000).startswith(b"HTTP/1.1 408 ")
        with socket.create_connection((LOOPBACK, server.port)) as lying:
            lying.sendall(head(b"Content-Length: 100") + b'{"rec_id": "lying"}')
            lying.shutdown(socket.SHUT_WR)
            lying.settimeout(60)
            assert lying.recv(10_000) == b""
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


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server:
        assert server.process is not None
        server.process.kill()
        server.process.wait(60)
        wait_until(
            lambda: not answers(server.port),
            seconds=60,
            what="the end of the processes",
            diagnose=server.log.read_text,
        )


def test_https_and_a_path_before_all_paths(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{LOOPBACK}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    arguments = ["--tls-cert", str(certificate), "--tls-key", str(key), "--root-path", "/queue"]
    with serving(tmp_path, *arguments, scheme="https") as server:
        trusted = ssl.create_default_context(cafile=certificate)
        assert trusted.cert_store_stats()["x509_ca"] == 1
        answer = server.ask("POST", "/docs/messages", data=b"{}", verify=str(certificate))
        assert answer.status_code == 202
        document = server.ask("GET", "/openapi.json", verify=str(certificate)).json()
        assert document["servers"] == [{"url": "/queue"}]


def test_health_says_what_is_wrong_to_who_may_know_it(
    tmp_path: Path, rabbitmq: RabbitMQServer, fresh_queue: Callable[..., str]
) -> None:
    source = {"kind": "rabbitmq", "url": rabbitmq.url, "queue": fresh_queue()}
    with serving(tmp_path, source=source) as server:
        wait_until(
            lambda: server.ask("GET", "/health/ready", token=None).json() == {"ready": True},
            seconds=120,
            what="the pipeline",
            diagnose=server.log.read_text,
        )
        (found,) = server.ask("GET", "/health/ready").json()["pipelines"]
        assert found["ready"] and found["waiting_messages"] == 0
        assert found["parts"]["intake"]["wanted"] == "runs"
        rabbitmq.kill()
        try:
            wait_until(
                lambda: any(one.startswith("queue: ") for one in troubles(server)),
                seconds=120,
                what="trouble",
                diagnose=server.log.read_text,
            )
            wait_until(  # each server process has looked
                lambda: server.ask("GET", "/health/ready", token=None).status_code == 503,
                seconds=120,
                what="the answer that it is not ready",
                diagnose=server.log.read_text,
            )
            assert server.ask("GET", "/health/live", token=None).status_code == 200
        finally:
            rabbitmq.start()
        wait_until(
            lambda: server.ask("GET", "/health/ready", token=None).status_code == 200,
            seconds=60,
            what="its end",
            diagnose=server.log.read_text,
        )


def troubles(server: Server) -> list[str]:
    (found,) = server.ask("GET", "/health/ready").json()["pipelines"]
    return list(found["troubles"])


def test_a_pause_over_http_is_the_pause_of_the_command(server: Server) -> None:
    asked = {"parts": ["shipping"], "reason": "the bucket moves", "by": "me"}
    answer = server.ask("POST", "/docs/pause", json=asked).json()
    assert answer["now"]["shipping"]["reason"] == "the bucket moves"
    assert answer["trouble"] == ""
    status = subprocess.run(
        [*COMMAND, "status"], cwd=server.folder, capture_output=True, text=True, check=True
    )
    assert "shipping is paused since" in status.stdout
    assert server.ask("POST", "/docs/resume").json()["now"]["shipping"]["paused"] is False


def test_the_document_is_valid_and_has_every_route(server: Server) -> None:
    document = server.ask("GET", "/openapi.json").json()
    openapi_spec_validator.validate(document)
    routes = {(method, path) for path, found in document["paths"].items() for method in found}
    assert {
        ("post", "/{pipeline}/messages"),
        ("get", "/{pipeline}/messages/{id}"),
        ("get", "/health/ready"),
        ("post", "/{pipeline}/pause"),
        ("get", "/metrics"),
    } <= routes
    assert document["paths"]["/{pipeline}/messages"]["post"]["security"] == [{"token": []}]
    assert document["paths"]["/health/live"]["get"]["security"] == []
    page = server.ask("GET", "/", token=None)
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")
