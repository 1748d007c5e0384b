"""`fuploader serve` itself: refusals, rights, its start and its end, HTTPS, health, pauses."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest

from tests.servers.ports import LOOPBACK, answers, wait_until
from tests.servers.rabbitmq import RabbitMQServer
from tests.serving import (
    COMMAND,
    FLAT,
    TOKEN,
    Server,
    assert_in_words,
    bodies,
    serving,
    write_configuration,
)

LIST = {"kind": "redis_list", "url": "redis://127.0.0.1:1/0", "key": "never-opened"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an embedded queue, for tests that count nothing."""
    with serving(tmp_path_factory.mktemp("serve"), serve={"max_items": 100}) as running:
        yield running


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
