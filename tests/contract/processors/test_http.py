"""A handler behind HTTP: what is sent, what answers mean, and all that can go wrong with them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web

from fuploader_dagster.contracts.processor import Item, ProcessorSettings, Result
from fuploader_dagster.errors import BadItem, ConfigError, FuploaderError, RetryItem
from fuploader_dagster.processing import http_connection
from fuploader_dagster.processing.http import HttpHandler
from fuploader_dagster.settings.loading import load_backend
from fuploader_dagster.testing import ProcessorContract
from tests.servers.http_handler import Call, HttpHandlerServer
from tests.servers.odd_server import make_certificate
from tests.servers.ports import LOOPBACK, free_port

ITEM = Item("a.json", b'{"a": 1}', key="slot-7")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.fixture
def handler() -> Iterator[HttpHandlerServer]:
    with HttpHandlerServer() as server:
        yield server


def processed(
    settings: HttpHandler, *calls: Sequence[Item]
) -> list[Sequence[Sequence[Result] | BadItem] | FuploaderError]:
    """What comes out of these calls, one after the other."""

    async def process() -> list[Any]:
        processor = settings.processor()
        await processor.open()
        found: list[Any] = []
        try:
            for items in calls:
                try:
                    found.append(await processor.process(items))
                except (BadItem, RetryItem) as error:
                    found.append(error)
        finally:
            await processor.close()
            await processor.close()
        return found

    return asyncio.run(process())


def contents(answer: object) -> list[list[bytes]]:
    assert isinstance(answer, list), answer
    return [[result.content for result in one] for one in answer]


def error_of(settings: HttpHandler, *items: Item) -> FuploaderError:
    """The error of one call, which is fit to be shown."""
    (error,) = processed(settings, items or [ITEM])
    if isinstance(error, list) and len(error) == 1:
        (error,) = error
    assert isinstance(error, FuploaderError), error
    assert str(error).isprintable()
    return error


def at(handler: HttpHandlerServer, **others: Any) -> HttpHandler:
    return HttpHandler(url=handler.url, **{"timeout_seconds": 60, **others})


async def as_the_contract_says(call: Call) -> web.StreamResponse:
    """The work of `ProcessorContract`'s table."""
    word, _, rest = call.body.partition(b" ")
    if word == b"key":
        return await call.reply(200, call.headers["Idempotency-Key"].encode())
    if word == b"header":
        value = call.headers[f"X-Fuploader-{rest.decode()}"]
        return await call.reply(200, unquote(value).encode())
    if word == b"slow":  # ends earlier if the test does
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(call.nothing(), float(rest))
        return await call.reply(200, word)
    status = {b"none": 204, b"bad": 422, b"retry": 503}.get(word, 200)
    return await call.reply(status, call.body if status == 200 else b"")


class TestHttpHandler(ProcessorContract):
    cannot = ("many",)  # an answer that is not read as JSON is one result

    @pytest.fixture
    def settings(self, handler: HttpHandlerServer) -> ProcessorSettings:
        handler.answer = as_the_contract_says
        return at(handler)


# What is sent


def test_raw_content_is_sent_as_it_is_with_its_type_name_and_headers(
    handler: HttpHandlerServer,
) -> None:
    kept = {"cmd": "thumb/64", "Content-Type": "image/png", "wer": "Jürgen 100%\r\n\x1b[2J"}
    (answer,) = processed(at(handler), [Item("ä b.png", b"\x89PNG\0", kept, "slot-7")])
    assert contents(answer) == [[b"\x89PNG\0"]]
    sent = handler.calls[0].headers
    assert sent["Content-Type"] == "image/png"
    assert sent["X-Fuploader-Name"] == "%C3%A4 b.png"
    assert sent["X-Fuploader-Cmd"] == "thumb/64"
    assert sent["X-Fuploader-Wer"] == "J%C3%BCrgen 100%25%0D%0A%1B[2J"
    assert sent["Idempotency-Key"] == "slot-7"


def test_content_without_a_type_is_bytes(handler: HttpHandlerServer) -> None:
    processed(at(handler), [Item("a", b"x", {"content-type": "no type\x00"})])
    assert handler.calls[0].headers["Content-Type"] == "application/octet-stream"


def test_json_is_sent_byte_by_byte(handler: HttpHandlerServer) -> None:
    content = b' {"big": 123456789012345678901234567890, "a": 1.10, "a": 2}'
    processed(at(handler, body="json"), [Item("a", content)])
    assert handler.calls[0].body == content
    assert handler.calls[0].headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("settings", "body"),
    [
        ({"batch": 3}, b"[1,2]"),
        ({"wrap": "data_list"}, b'{"data_list":[1]}'),
        ({"wrap": 'a"b', "batch": 2}, b'{"a\\"b":[1,2]}'),
    ],
)
def test_items_are_wrapped(handler: HttpHandlerServer, settings: Any, body: bytes) -> None:
    items = [Item("1", b"1"), Item("2", b"2")]
    processed(at(handler, body="json", **settings), items if "batch" in settings else items[:1])
    assert handler.calls[0].body == body


def test_content_that_is_not_json_is_bad_and_the_others_of_its_batch_go_on(
    handler: HttpHandlerServer,
) -> None:
    items = [Item("1", b"1"), Item("2", b"{"), Item("3", b"3"), Item("4", b"")]
    (answer,) = processed(at(handler, body="json", batch=4), items)
    assert isinstance(answer, list)
    first, second, third, fourth = answer
    assert isinstance(second, BadItem) and isinstance(fourth, BadItem)
    assert "not JSON" in str(second)
    assert contents([first, third]) == [[b"1"], [b"3"]]
    assert handler.calls[0].body == b"[1,3]"
    (alone,) = processed(at(handler, body="json"), [items[1]])
    assert isinstance(alone, list) and isinstance(alone[0], BadItem)
    assert len(handler.calls) == 1


def test_headers_come_from_the_environment_and_are_shown_nowhere(
    handler: HttpHandlerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "Bearer very-secret-token"
    monkeypatch.setenv("TOKEN", token + "\n")

    async def echo(call: Call) -> web.StreamResponse:
        said = f"\x1b[31m{call.headers['Authorization']} {call.request.query_string}"
        return await call.reply(422, said.encode())

    handler.answer = echo
    settings = load_backend(
        "process",
        {
            "kind": "http",
            "url": f"{handler.url}?key=hidden-as-well",
            "headers": {"Authorization": {"env": "TOKEN"}, "X-Model": "v2"},
        },
        "here",
    )
    error = error_of(settings)
    assert handler.calls[0].headers["Authorization"] == token
    assert handler.calls[0].headers["X-Model"] == "v2"
    assert handler.calls[0].request.query_string == "key=hidden-as-well"
    for text in (str(error), repr(settings.headers), settings.describe(), settings.version()):
        assert "very-secret-token" not in text and "hidden-as-well" not in text
    assert "422: \\x1b[31m*** ***" in str(error)


def test_an_attempt_has_the_same_idempotency_key_as_the_one_before(
    handler: HttpHandlerServer,
) -> None:
    items = [Item("1", b"1", key="slot-1"), Item("2", b"2", key="slot-2")]
    handler.answer = lambda call: call.reply(503)
    first, second = processed(at(handler, body="json", batch=2), items, items)
    assert isinstance(first, RetryItem) and isinstance(second, RetryItem)
    keys = [call.headers["Idempotency-Key"] for call in handler.calls]
    assert keys == [hashlib.sha256(b"slot-1\nslot-2").hexdigest()] * 2


def test_no_proxy_and_no_login_come_from_the_environment(
    handler: HttpHandlerServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{LOOPBACK}:{free_port()}")
    (tmp_path / ".netrc").write_text(f"machine {LOOPBACK} login user password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    (answer,) = processed(at(handler), [ITEM])
    assert contents(answer) == [[ITEM.content]]
    assert "Authorization" not in handler.calls[0].headers


def test_large_content_is_sent_whole(handler: HttpHandlerServer) -> None:
    content = os.urandom(3 << 20)
    (answer,) = processed(at(handler), [Item("a", content)])
    assert contents(answer) == [[content]]


# What answers mean


def test_an_answer_is_one_result_with_its_type(handler: HttpHandlerServer) -> None:
    handler.answer = lambda call: call.reply(200, b"[1, 2]", Content_Type="text/x; charset=utf-8")
    assert processed(at(handler), [ITEM]) == [
        [[Result(b"[1, 2]", content_type="text/x; charset=utf-8")]]
    ]


@pytest.mark.parametrize("status", [200, 204])
def test_an_empty_answer_is_no_result(handler: HttpHandlerServer, status: int) -> None:
    handler.answer = lambda call: call.reply(status)
    assert processed(at(handler), [ITEM]) == [[[]]]
    assert processed(at(handler, body="json", batch=2), [ITEM, ITEM]) == [[[], []]]


@pytest.mark.parametrize(
    ("settings", "said", "results"),
    [
        (
            {"answer": "data.results"},
            b'{"data": {"results": [1, {"b":2.10}]}}',
            [b"1", b'{"b":2.10}'],
        ),
        ({"answer": "data"}, b'{"data": {"x": 1}}', [b'{"x": 1}']),
        ({"answer": "data"}, b'{"data": null}', []),
        ({"answer": "data"}, b'{"data": [ ]}', []),
        ({"answer": "."}, b'[1,"two"]', [b"1", b'"two"']),
        ({"body": "json", "wrap": "list"}, b'[{"id": 1}]', [b'{"id": 1}']),
        ({"body": "json", "wrap": "list"}, b"{}", [b"{}"]),
    ],
)
def test_results_are_taken_from_the_answers_json(
    handler: HttpHandlerServer, settings: Any, said: bytes, results: list[bytes]
) -> None:
    handler.answer = lambda call: call.reply(200, said)
    (answer,) = processed(at(handler, **settings), [ITEM])
    assert contents(answer) == [results]
    assert isinstance(answer, list)
    assert {result.content_type for result in answer[0]} <= {"application/json"}


def test_a_batchs_answers_stay_in_the_order_of_its_items(handler: HttpHandlerServer) -> None:
    async def doubled(call: Call) -> web.StreamResponse:
        numbers = json.loads(call.body)["items"]
        said = [None if n == 3 else [n, n] if n == 2 else n * 2 for n in numbers]
        return await call.reply(200, json.dumps({"out": said}).encode())

    handler.answer = doubled
    settings = at(handler, body="json", batch=4, wrap="items", answer="out")
    items = [Item(str(n), str(n).encode()) for n in (4, 3, 2, 1)]
    answers = processed(settings, items, items[:1])
    assert [contents(answer) for answer in answers] == [
        [[b"8"], [], [b"2", b"2"], [b"2"]],
        [[b"8"]],
    ]


@pytest.mark.parametrize("said", [b"[1]", b"[1,2,3]", b'{"a": 1}', b"null"])
def test_a_batch_without_an_element_per_item_is_taken_apart(
    handler: HttpHandlerServer, said: bytes
) -> None:
    handler.answer = lambda call: call.reply(200, said)
    settings = at(handler, body="json", batch=2)
    assert isinstance(error_of(settings, ITEM, ITEM), BadItem)
    if said != b"[1]":  # then it is right
        assert isinstance(error_of(settings, ITEM), RetryItem)


def test_a_batch_is_refused_for_one_bad_item_which_is_found_alone(
    handler: HttpHandlerServer,
) -> None:
    async def picky(call: Call) -> web.StreamResponse:
        numbers = json.loads(call.body)
        if 2 in numbers:
            return await call.reply(422, b"I do not like 2")
        return await call.reply(200, json.dumps(numbers).encode())

    handler.answer = picky
    items = [Item(str(n), str(n).encode()) for n in (1, 2, 3)]
    together, *alone = processed(
        at(handler, body="json", batch=3), items, *([item] for item in items)
    )
    assert isinstance(together, BadItem)
    assert isinstance(alone[1], list) and isinstance(alone[1][0], BadItem)
    assert "I do not like 2" in str(alone[1][0])
    assert contents(alone[0]) == [[b"1"]] and contents(alone[2]) == [[b"3"]]


@pytest.mark.parametrize(
    "said", [b"<html>please log in</html>", b'{"error": 1}', b'{"data": ', b"[" * 100_000, b"\xff"]
)
def test_an_answer_that_does_not_fit_makes_no_dead_letters_at_once(
    handler: HttpHandlerServer, said: bytes
) -> None:
    handler.answer = lambda call: call.reply(200, said)
    error = error_of(at(handler, answer="data.items"))
    assert isinstance(error, RetryItem)
    assert "`answer`" in error.hint


@pytest.mark.parametrize("status", [400, 406, 411, 412, 413, 414, 418, 422, 428, 431, 451, 499])
def test_what_the_handler_has_against_an_item_makes_it_bad(
    handler: HttpHandlerServer, status: int
) -> None:
    handler.answer = lambda call: call.reply(status, b"\n no\tface\x1b[0m " + b"x" * 100_000)
    error = error_of(at(handler))
    assert isinstance(error, BadItem)
    said = str(error).partition(f"the handler answered {status}: ")[2]
    assert said.startswith("no\\tface\\x1b[0m xxx")
    assert len(said) < 250


@pytest.mark.parametrize(
    "status", [401, 402, 403, 404, 405, 407, 408, 409, 410, 415, 421, 423, 425, 426, 429]
)
def test_what_any_item_would_get_is_tried_again(handler: HttpHandlerServer, status: int) -> None:
    handler.answer = lambda call: call.reply(status, b"no")
    error = error_of(at(handler))
    assert isinstance(error, RetryItem)
    assert not error.shared


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 507, 599])
def test_a_handler_that_failed_is_asked_again(handler: HttpHandlerServer, status: int) -> None:
    handler.answer = lambda call: call.reply(status, b"traceback")
    error = error_of(at(handler))
    assert isinstance(error, RetryItem)
    assert f"answered {status}: traceback" in str(error)


def test_retry_after_is_read_as_seconds_and_as_a_date(handler: HttpHandlerServer) -> None:
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    stated = ["7", format_datetime(later, usegmt=True), "-1", "soon", "9" * 400]
    waiting = list(stated)
    handler.answer = lambda call: call.reply(429, Retry_After=waiting.pop(0))
    errors = processed(at(handler), *[[ITEM]] * len(stated))
    pauses = [error.retry_after_seconds for error in errors if isinstance(error, RetryItem)]
    assert pauses[0] == 7
    assert pauses[1] is not None and 3000 < pauses[1] <= 3600
    assert pauses[2:] == [None, None, 86_400]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(handler: HttpHandlerServer, status: int) -> None:
    handler.answer = lambda call: call.reply(status, Location="/elsewhere?token=secret")
    error = error_of(at(handler))
    assert isinstance(error, RetryItem)
    assert "a redirect to /elsewhere, which is not followed" in str(error)
    assert "`url`" in error.hint
    assert [call.request.path for call in handler.calls] == ["/handle"]


# Connections


def test_connections_are_used_again_and_are_as_many_as_calls_at_once(
    handler: HttpHandlerServer,
) -> None:
    async def process() -> None:
        processor = at(handler, concurrency=4).processor()
        await processor.open()
        try:
            for _ in range(10):
                await asyncio.gather(*(processor.process([ITEM]) for _ in range(4)))
        finally:
            await processor.close()

    asyncio.run(process())
    assert len(handler.calls) == 40
    assert len(handler.ports) == 4


def test_a_refusal_leaves_its_connection_usable(handler: HttpHandlerServer) -> None:
    handler.answer = lambda call: call.reply(422, b"no")
    processed(at(handler), *[[ITEM]] * 5)
    assert len(handler.ports) == 1


def test_no_cookie_passes_from_one_call_to_the_next(handler: HttpHandlerServer) -> None:
    handler.answer = lambda call: call.reply(200, b"x", Set_Cookie="seen=1")
    processed(at(handler), [ITEM], [ITEM])
    assert "Cookie" not in handler.calls[1].headers


def test_nobody_listens() -> None:
    settings = HttpHandler(url=f"http://{LOOPBACK}:{free_port()}/x?token=secret")
    error = error_of(settings)
    assert isinstance(error, RetryItem) and not error.shared
    assert "could not connect: " in str(error) and "secret" not in str(error)
    assert "check that the handler runs" in error.hint


def test_a_host_that_does_not_exist() -> None:
    error = error_of(HttpHandler(url="http://nobody.invalid/", timeout_seconds=60))
    assert isinstance(error, RetryItem) and not error.shared
    assert "nobody.invalid" in str(error)


def test_a_connection_that_is_lost_without_an_answer_may_be_another_items_fault(
    handler: HttpHandlerServer,
) -> None:
    handler.answer = lambda call: call.reset()
    error = error_of(at(handler))
    assert isinstance(error, RetryItem) and error.shared
    handler.answer = lambda call: call.reply_raw(b"")
    error = error_of(at(handler))
    assert isinstance(error, RetryItem) and error.shared


@pytest.mark.parametrize(
    "head", [b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n64\r\n"]
)
def test_an_answer_that_is_cut_short_is_no_result(handler: HttpHandlerServer, head: bytes) -> None:
    handler.answer = lambda call: call.reset(HEAD + head + b"half")
    error = error_of(at(handler))
    assert isinstance(error, RetryItem)
    handler.answer = lambda call: call.reply_raw(HEAD + head + b"half")
    error = error_of(at(handler))
    assert isinstance(error, RetryItem) and not error.shared
    assert "cut short" in str(error)


def test_what_comes_after_an_answer_is_nobodys_result(handler: HttpHandlerServer) -> None:
    smuggled = HEAD + b"Content-Length: 4\r\n\r\nevil"
    answers = [HEAD + b"Content-Length: 2\r\n\r\nok" + smuggled]

    async def answer(call: Call) -> web.StreamResponse:
        return await (
            call.reply_raw(answers.pop(), end=False) if answers else call.reply(200, b"2")
        )

    handler.answer = answer
    first, second = processed(at(handler), [ITEM], [ITEM])
    assert contents(first) == [[b"ok"]]
    assert contents(second) == [[b"2"]]


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 100])
def test_something_that_does_not_speak_http(handler: HttpHandlerServer, said: bytes) -> None:
    handler.answer = lambda call: call.reply_raw(said)
    error = error_of(at(handler))
    assert isinstance(error, RetryItem)
    assert "the answer is not HTTP" in str(error)


def test_a_status_line_and_headers_that_are_endless(handler: HttpHandlerServer) -> None:
    handler.answer = lambda call: call.flood(HEAD, b"X-More: " + b"x" * 1000 + b"\r\n")
    assert isinstance(error_of(at(handler)), RetryItem)
    handler.answer = lambda call: call.flood(b"HTTP/1.1 200 ", b"x" * 1000)
    assert isinstance(error_of(at(handler)), RetryItem)


@pytest.mark.parametrize("start", [b"", HEAD, HEAD + b"Content-Length: 5\r\n\r\nha"])
def test_an_hour_of_nothing_ends_after_the_timeout(
    handler: HttpHandlerServer, start: bytes
) -> None:
    handler.answer = lambda call: call.reply_raw(start, end=False)
    error = error_of(at(handler, timeout_seconds=0.3))
    assert isinstance(error, RetryItem) and not error.shared
    assert "after 0.3 seconds" in str(error) and "timeout_seconds" in error.hint


def test_a_refusal_that_is_cut_short_is_a_refusal(handler: HttpHandlerServer) -> None:
    head = b"HTTP/1.1 422 No\r\nContent-Length: 100\r\n\r\n"
    handler.answer = lambda call: call.reset(head + b"half")
    assert isinstance(error_of(at(handler)), BadItem)


@pytest.mark.parametrize("status", [b"200 OK", b"100 Continue"])
def test_a_trickling_answer_ends_after_the_timeout(
    handler: HttpHandlerServer, status: bytes
) -> None:
    length = b"\r\nContent-Length: 100000\r\n\r\n"
    line = b"HTTP/1.1 " + status
    again = line + b"\r\n\r\n" if status.startswith(b"100") else b"x"
    handler.answer = lambda call: call.trickle(line + length, again)
    error = error_of(at(handler, timeout_seconds=0.3))
    assert isinstance(error, RetryItem)


def test_an_answer_that_is_too_large_is_not_read(handler: HttpHandlerServer) -> None:
    most = 1 << 20
    for start in (
        HEAD + b"Content-Length: 99999999999\r\n\r\n",
        HEAD + b"Connection: close\r\n\r\n",
        HEAD + b"Content-Encoding: identity\r\nConnection: close\r\n\r\n",
    ):
        handler.answer = lambda call, start=start: call.flood(start, b"x" * 65_536)  # type: ignore[misc]
        tracemalloc.start()
        try:
            error = error_of(at(handler, max_result_bytes=most))
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
        assert isinstance(error, BadItem)
        assert "max_result_bytes, 1,048,576 bytes" in str(error)


def test_an_answer_with_two_lengths_is_none(handler: HttpHandlerServer) -> None:
    both = HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    handler.answer = lambda call: call.flood(both, b"10000\r\n" + b"x" * 65_536 + b"\r\n")
    assert isinstance(error_of(at(handler, max_result_bytes=1 << 20)), (RetryItem, BadItem))


def test_an_endless_refusal_is_quoted_and_left(handler: HttpHandlerServer) -> None:
    head = b"HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n"
    handler.answer = lambda call: call.flood(head, b"y" * 65_536)
    error = error_of(at(handler))
    assert isinstance(error, BadItem)
    assert str(error).endswith("y" * 200)


def test_a_few_kilobytes_that_unpack_to_gigabytes_are_not_unpacked(
    handler: HttpHandlerServer,
) -> None:
    bomb = gzip.compress(bytes(256 << 20), 1)
    handler.answer = lambda call: call.reply(200, bomb, Content_Encoding="gzip")
    tracemalloc.start()
    try:
        error = error_of(at(handler, max_result_bytes=1 << 20))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert isinstance(error, BadItem)
    handler.answer = lambda call: call.reply(200, gzip.compress(b"good"), Content_Encoding="gzip")
    assert contents(processed(at(handler), [ITEM])[0]) == [[b"good"]]
    handler.answer = lambda call: call.reply(200, b"no gzip", Content_Encoding="gzip")
    assert isinstance(error_of(at(handler)), RetryItem)


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two certificates with their keys: the handler's and that of somebody else."""
    return (
        make_certificate(tmp_path_factory.mktemp("ours")),
        make_certificate(tmp_path_factory.mktemp("theirs")),
    )


def test_tls_is_verified_with_an_authority_of_ones_own(certificates: tuple[Path, Path]) -> None:
    ours, theirs = certificates
    with HttpHandlerServer(ours) as handler:
        good = at(handler, ca_file=ours)
        assert contents(processed(good, [ITEM])[0]) == [[ITEM.content]]
        assert [one.verdict for one in good.examine()] == ["good"]
        for wrong in (at(handler), at(handler, ca_file=theirs)):
            error = error_of(wrong)
            assert isinstance(error, RetryItem) and not error.shared
            assert "the certificate is not trusted" in str(error)
            assert "ca_file" in error.hint
            (found,) = wrong.examine()
            assert found.verdict == "wrong" and "ca_file" in found.hint
    assert len(handler.calls) == 1


def test_a_handler_that_asks_for_a_certificate(
    certificates: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = certificates
    with HttpHandlerServer(ours, trusted_clients=theirs) as handler:
        good = at(handler, ca_file=ours, cert_file=theirs)
        assert contents(processed(good, [ITEM])[0]) == [[ITEM.content]]
        assert [one.verdict for one in good.examine()] == ["good"]
        monkeypatch.setattr(
            http_connection, "_REFUSED_BY_TLS_SECONDS", 60.0
        )  # it comes at once, or late
        for wrong in (at(handler, ca_file=ours), at(handler, ca_file=ours, cert_file=ours)):
            assert isinstance(error_of(wrong), RetryItem)
            (found,) = wrong.examine()
            assert found.verdict == "wrong" and "cert_file" in found.hint


def test_plain_http_where_tls_is_spoken_and_the_other_way_round(
    handler: HttpHandlerServer, certificates: tuple[Path, Path]
) -> None:
    error = error_of(HttpHandler(url=handler.url.replace("http:", "https:")))
    assert isinstance(error, RetryItem)
    assert "https://" in error.hint
    with HttpHandlerServer(certificates[0]) as other:
        plain = error_of(HttpHandler(url=other.url.replace("https:", "http:")))
        assert isinstance(plain, RetryItem)


@pytest.mark.parametrize("name", ["ca_file", "cert_file"])
def test_a_certificate_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    file = tmp_path / "file.pem"
    for text in (None, "no certificate"):
        if text is not None:
            file.write_text(text)
        settings = HttpHandler(url="https://127.0.0.1/", **{name: file})
        with pytest.raises(ConfigError, match=f"could not read {name}"):
            processed(settings, [ITEM])
        (found,) = settings.examine()
        assert found.verdict == "wrong" and name in found.found


# Doctor, and settings


def test_doctor_connects_and_sends_nothing(handler: HttpHandlerServer) -> None:
    (found,) = at(handler).examine()
    assert found.verdict == "good" and handler.url in found.found
    assert handler.calls == []


def test_doctor_says_that_nobody_listens_or_that_there_is_no_such_host() -> None:
    for url in (f"http://{LOOPBACK}:{free_port()}/", "http://nobody.invalid/"):
        (found,) = HttpHandler(url=url).examine()
        assert found.verdict == "unreachable"
        assert "check that the handler runs" in found.hint


def test_doctor_does_not_wait_for_a_host_that_takes_connections_and_says_nothing() -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        port = silent.getsockname()[1]
        (found,) = HttpHandler(url=f"https://{LOOPBACK}:{port}/", timeout_seconds=0.2).examine()
    assert found.verdict == "unreachable"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "http://user:password@host/"}, "set an Authorization header in `headers`"),
        ({"url": "ftp://host/"}, "must look like"),
        ({"url": "http:///path"}, "must look like"),
        ({"url": "http://host:99999/"}, "must look like"),
        ({"url": "http://[host/"}, "must look like"),
        ({"url": "http://host/a b"}, "must look like"),
        ({"url": "http://host/\x1b"}, "must look like"),
        ({"url": "http://host/#part"}, "must look like"),
        ({"url": "http://host/", "wrap": "a"}, "need body: json"),
        ({"url": "http://host/", "batch": 2}, "need body: json"),
        ({"url": "http://host/", "answer": "a..b"}, "it must name a field"),
        ({"url": "http://host/", "body": "json", "wrap": ""}, "it must name a field"),
        ({"url": "http://host/", "ca_file": "/a"}, "does not begin with https"),
        ({"url": "https://host/", "key_file": "/a"}, "not the cert_file"),
        ({"url": "http://host/", "headers": {"A b": "c"}}, "a name that HTTP does not allow"),
        ({"url": "http://host/", "headers": {"A": "c\r\nB: d"}}, "is not printable ASCII"),
        ({"url": "http://host/", "headers": {"a": "1", "A": "2"}}, "there twice"),
        ({"url": "http://host/", "headers": {"Content-length": "1"}}, "set by the pipeline"),
        ({"url": "http://host/", "headers": {"X-Fuploader-Name": "1"}}, "set by the pipeline"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_backend("process", {"kind": "http", **settings}, "here")
    assert said in str(caught.value)
    assert "password" not in str(caught.value)


def test_a_header_whose_variable_is_not_set_is_named_where_the_handler_is_asked() -> None:
    settings = load_backend(
        "process", {"kind": "http", "url": "http://host/", "headers": {"A": {"env": "NOT_SET"}}}, ""
    )
    with pytest.raises(ConfigError, match="environment variable NOT_SET is not set"):
        settings.headers["A"].get_secret_value()


def test_loading_the_settings_does_not_import_aiohttp() -> None:
    code = (
        "import sys; from fuploader_dagster.processing.http import HttpHandler; "
        "HttpHandler(url='http://host/').processor(); print('aiohttp' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
