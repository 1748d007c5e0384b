"""Bodies that are too large, too slow or cut off are refused, and nobody else waits."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.processors_for_tests import Script, script
from tests.servers.front_door import TOKEN, front_door
from tests.settings import pipeline

BODY = script()
START = f"POST /docs/process HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n".encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, str]]:
    """Status and error, after the server has closed the connection."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "rest",
    [
        b"content-length: 1000000000\r\n\r\nx",
        b"content-length: 1001\r\n\r\n" + b"x" * 1001,
        b"transfer-encoding: chunked\r\n\r\n" + b"1F4\r\n" + b"x" * 500 + b"\r\n" + b"3E8\r\n",
    ],
)
def test_a_body_that_is_too_large_is_refused_before_it_is_all_here(
    tmp_path: Path, rest: bytes
) -> None:
    settings = pipeline(tmp_path, process=Script(), serve={"max_body_bytes": 1000})
    with front_door(settings) as door:
        with closing(door.raw(START + rest)) as connection:
            if rest.endswith(b"3E8\r\n"):
                connection.sendall(b"x" * 1000 + b"\r\n")
            status, said = answer(connection)
        assert (status, "1,000 bytes" in said["error"]) == (413, True)
        assert "max_body_bytes" in said["hint"]
        assert door.ask("POST", "/docs/process", BODY).status == 200


def test_a_body_that_does_not_come_is_refused_and_holds_nobody_up(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, process=Script(), serve={"body_seconds": 0.5})
    with front_door(settings) as door:
        slow = [door.raw(START + b"content-length: 99\r\n\r\n{") for _ in range(50)]
        assert door.ask("POST", "/docs/process", BODY).status == 200
        for connection in slow:
            with closing(connection):
                status, said = answer(connection)
            assert (status, "not here after 0.5 s" in said["error"]) == (408, True)


def test_a_client_that_leaves_in_the_middle_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = pipeline(tmp_path, process=Script(), serve=True)
    with front_door(settings) as door:
        for _ in range(20):
            door.raw(START + b"content-length: 99\r\n\r\n{").close()
        assert door.ask("POST", "/docs/process", BODY).status == 200
    assert "unexpected" not in caplog.text
    assert "Traceback" not in caplog.text
