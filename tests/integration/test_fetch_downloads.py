"""Downloads from a server that misbehaves in every way that a test could think of."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import socket
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from fuploader_dagster.fetching.addresses import Address
from fuploader_dagster.fetching.fetcher import Counts
from tests.fetches import contents, fetch, only_reason
from tests.servers.connect_proxy import ConnectProxy
from tests.servers.http_handler import Call, HttpHandlerServer
from tests.servers.odd_server import make_certificate
from tests.servers.ports import LOOPBACK, free_port

BODY = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(40_000))  # 1.28 MB
ETAG = '"v1"'


@pytest.fixture
def origin() -> Iterator[HttpHandlerServer]:
    with HttpHandlerServer() as server:
        yield server


def base(origin: HttpHandlerServer) -> str:
    return f"http://{LOOPBACK}:{origin.port}"


async def serve_with_ranges(call: Call, body: bytes = BODY, etag: str = ETAG) -> web.Response:
    """As a good server does: If-Range and open ranges."""
    wanted = call.headers.get("Range", "")
    if wanted and call.headers.get("If-Range", etag) == etag:
        first = int(wanted.removeprefix("bytes=").rstrip("-"))
        last = len(body) - 1
        return await call.reply(
            206, body[first:], ETag=etag, Content_Range=f"bytes {first}-{last}/{len(body)}"
        )
    return await call.reply(200, body, ETag=etag)


def head(length: int, *more: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_a_file_is_fetched_with_its_digest_type_and_headers(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reply(
        200, BODY, ETag=ETAG, Last_Modified="Fri, 06 Nov 2026 10:00:00 GMT",
        Content_Type="image/jpeg",
    )  # fmt: skip
    outcome = fetch([f"{base(origin)}/a/photo?size=2"], tmp_path)
    (one,) = outcome.fetched
    assert contents(outcome, tmp_path) == {"photo.jpg": BODY}
    assert one.file.sha256 == hashlib.sha256(BODY).hexdigest()
    assert one.file.size_bytes == len(BODY)
    assert one.file.content_type == "image/jpeg"
    assert one.file.headers == {"etag": ETAG, "last-modified": "Fri, 06 Nov 2026 10:00:00 GMT"}
    (call,) = origin.calls
    assert call.headers["Accept-Encoding"] == "identity"
    assert list((tmp_path / "parts").iterdir()) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 304, 501])
def test_what_a_server_refuses_is_not_asked_for_again(
    origin: HttpHandlerServer, tmp_path: Path, status: int
) -> None:
    origin.answer = lambda call: call.reply(status)
    outcome = fetch([f"{base(origin)}/x"], tmp_path)
    assert only_reason(outcome) == f"the server answered {status}"
    assert outcome.missed[0].status == status
    assert not outcome.missed[0].passing
    assert len(origin.calls) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_for_again(
    origin: HttpHandlerServer, tmp_path: Path, status: int
) -> None:
    origin.answer = lambda call: (
        call.reply(status) if len(origin.calls) < 3 else call.reply(200, b"x")
    )
    assert contents(fetch([f"{base(origin)}/x"], tmp_path), tmp_path) == {"x": b"x"}
    assert len(origin.calls) == 3


def test_a_server_that_always_fails_is_given_up(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply(503)
    outcome = fetch([f"{base(origin)}/x"], tmp_path, max_retries=2)
    assert only_reason(outcome) == "the server answered 503"
    assert outcome.missed[0].passing
    assert not outcome.missed[0].unreachable
    assert len(origin.calls) == 3


def test_the_pause_that_a_server_asks_for_is_kept(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    at: list[float] = []

    async def answer(call: Call) -> web.StreamResponse:
        at.append(time.monotonic())
        if len(at) == 1:
            return await call.reply(429, Retry_After="1")
        return await call.reply(200, b"x")

    origin.answer = answer
    assert contents(fetch([f"{base(origin)}/x"], tmp_path), tmp_path) == {"x": b"x"}
    assert at[1] - at[0] >= 1


def test_a_pause_longer_than_the_time_that_is_left_ends_the_address(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reply(429, Retry_After="7200")
    outcome = fetch([f"{base(origin)}/x"], tmp_path)
    assert only_reason(outcome).endswith("timeout_seconds leaves no time for another attempt")


def test_a_truncated_file_is_completed_with_what_is_missing(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    async def answer(call: Call) -> web.StreamResponse:
        if len(origin.calls) == 1:
            return await call.reply_raw(head(len(BODY), f"ETag: {ETAG}") + BODY[:700_000])
        return await serve_with_ranges(call)

    origin.answer = answer
    assert contents(fetch([f"{base(origin)}/x"], tmp_path), tmp_path) == {"x": BODY}
    assert origin.calls[1].headers["If-Range"] == ETAG
    assert origin.calls[1].headers["Range"] == "bytes=700000-"


def test_a_file_without_a_validator_begins_again(origin: HttpHandlerServer, tmp_path: Path) -> None:
    async def answer(call: Call) -> web.StreamResponse:
        if len(origin.calls) == 1:
            return await call.reply_raw(head(len(BODY), 'ETag: W/"weak"') + BODY[:700_000])
        return await call.reply(200, BODY)

    origin.answer = answer
    assert contents(fetch([f"{base(origin)}/x"], tmp_path), tmp_path) == {"x": BODY}
    assert "Range" not in origin.calls[1].headers


def test_a_file_that_changed_between_two_attempts_begins_again(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    newer = BODY[::-1]

    async def answer(call: Call) -> web.StreamResponse:
        if len(origin.calls) == 1:
            return await call.reply_raw(head(len(BODY), f"ETag: {ETAG}") + BODY[:700_000])
        return await serve_with_ranges(call, newer, '"v2"')

    origin.answer = answer
    outcome = fetch([f"{base(origin)}/x"], tmp_path)
    assert contents(outcome, tmp_path) == {"x": newer}
    assert outcome.fetched[0].file.headers["etag"] == '"v2"'


@pytest.mark.parametrize(
    ("content_range", "etag"),
    [
        (f"bytes 0-{len(BODY) - 1}/{len(BODY)}", ETAG),
        (f"bytes 700000-{len(BODY) - 2}/{len(BODY)}", ETAG),
        (f"bytes 700000-{len(BODY) - 1}/*", ETAG),
        (f"bytes 700000-{len(BODY)}/{len(BODY) + 1}", ETAG),
        ("nonsense", ETAG),
        (f"bytes 700000-{len(BODY) - 1}/{len(BODY)}", '"v2"'),
    ],
)
def test_a_wrong_range_is_never_added_to_a_file(
    origin: HttpHandlerServer, tmp_path: Path, content_range: str, etag: str
) -> None:
    async def answer(call: Call) -> web.StreamResponse:
        if len(origin.calls) == 1:
            return await call.reply_raw(head(len(BODY), f"ETag: {ETAG}") + BODY[:700_000])
        if "Range" in call.headers:
            return await call.reply(206, b"#" * 580_000, ETag=etag, Content_Range=content_range)
        return await call.reply(200, BODY, ETag=ETAG)

    origin.answer = answer
    assert contents(fetch([f"{base(origin)}/x"], tmp_path), tmp_path) == {"x": BODY}
    assert len(origin.calls) == 3


def test_a_range_that_the_server_no_longer_has_begins_again(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    async def answer(call: Call) -> web.StreamResponse:
        if len(origin.calls) == 1:
            return await call.reply_raw(head(len(BODY), f"ETag: {ETAG}") + BODY[:700_000])
        return await (call.reply(416) if "Range" in call.headers else call.reply(200, b"short"))

    origin.answer = answer
    assert contents(fetch([f"{base(origin)}/x"], tmp_path), tmp_path) == {"x": b"short"}


def test_a_206_that_nobody_asked_for_is_no_file(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply(206, b"part", Content_Range="bytes 0-3/9")
    outcome = fetch([f"{base(origin)}/x"], tmp_path, max_retries=1)
    assert only_reason(outcome) == "the server answered with another range than was asked for"


def test_a_file_that_breaks_again_and_again_is_fetched_as_long_as_it_grows(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    body = BODY * 5  # 6.4 MB, of which each attempt brings 1.1

    async def answer(call: Call) -> web.StreamResponse:
        first = int(call.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        piece = body[first : first + 1_100_000]
        lines = [f"ETag: {ETAG}", f"Content-Range: bytes {first}-{len(body) - 1}/{len(body)}"]
        if first:
            return await call.reply_raw(
                head(len(body) - first, *lines, status="206 Partial Content") + piece
            )
        return await call.reply_raw(head(len(body), lines[0]) + piece)

    origin.answer = answer
    outcome = fetch([f"{base(origin)}/x"], tmp_path, max_retries=1)
    assert contents(outcome, tmp_path) == {"x": body}
    assert len(origin.calls) == 6


def test_an_endless_file_ends_at_max_bytes(origin: HttpHandlerServer, tmp_path: Path) -> None:
    start = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    origin.answer = lambda call: call.flood(start, b"x" * 65536)
    outcome = fetch([f"{base(origin)}/x"], tmp_path, max_bytes=3_000_000)
    assert only_reason(outcome) == "the file has more than max_bytes, 3,000,000 bytes"
    assert len(origin.calls) == 1
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_file_that_is_announced_as_too_large_is_not_read(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reply_raw(head(3_000_001), end=False)
    outcome = fetch([f"{base(origin)}/x"], tmp_path, max_bytes=3_000_000)
    assert only_reason(outcome) == "the file has more than max_bytes, 3,000,000 bytes"


def test_a_gzip_bomb_ends_at_max_bytes_and_takes_no_memory(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    bomb = gzip.compress(bytes(400_000_000), 6)
    origin.answer = lambda call: call.reply(200, bomb, Content_Encoding="gzip")
    tracemalloc.start()
    try:
        outcome = fetch([f"{base(origin)}/x"], tmp_path, decode=True, max_bytes=100_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert only_reason(outcome) == "the file has more than max_bytes, 100,000,000 bytes"
    assert peak < 8_000_000


def test_a_packed_file_is_kept_as_it_is_unless_it_is_to_be_decoded(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    packed = gzip.compress(BODY[:50_000]) + gzip.compress(BODY[50_000:])
    origin.answer = lambda call: call.reply(200, packed, Content_Encoding="gzip", ETag=ETAG)
    kept = fetch([f"{base(origin)}/x"], tmp_path / "kept")
    assert contents(kept, tmp_path / "kept") == {"x": packed}
    assert kept.fetched[0].file.headers == {"etag": ETAG, "content-encoding": "gzip"}
    decoded = fetch([f"{base(origin)}/x"], tmp_path / "decoded", decode=True)
    assert contents(decoded, tmp_path / "decoded") == {"x": BODY}
    assert decoded.fetched[0].file.headers == {"etag": ETAG}


def test_a_packed_file_that_is_cut_short_is_no_file(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reply(200, gzip.compress(BODY)[:-20], Content_Encoding="gzip")
    outcome = fetch([f"{base(origin)}/x"], tmp_path, decode=True, max_retries=0)
    assert only_reason(outcome) == "the packed file was cut short"


def test_a_server_that_trickles_is_given_up(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.trickle(head(1_000_000), b"x")
    outcome = fetch([f"{base(origin)}/x"], tmp_path, stall_seconds=2, max_retries=0)
    assert "bytes came in" in only_reason(outcome)


def test_a_server_that_trickles_its_headers_is_given_up(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.trickle(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x")
    outcome = fetch([f"{base(origin)}/x"], tmp_path, stall_seconds=2, max_retries=0)
    assert only_reason(outcome) == "no answer within stall_seconds"


def test_a_server_that_falls_silent_is_given_up(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply_raw(head(1000) + b"x", end=False)
    outcome = fetch([f"{base(origin)}/x"], tmp_path, stall_seconds=2, max_retries=0)
    assert only_reason(outcome) == "the server fell silent for stall_seconds"


def test_all_attempts_for_a_file_end_after_timeout_seconds(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    start = head(1_000_000_000, f"ETag: {ETAG}")
    origin.answer = lambda call: call.trickle(start, b"x" * 50_000)
    outcome = fetch([f"{base(origin)}/x"], tmp_path, timeout_seconds=3)
    assert only_reason(outcome) == (
        "the file did not come in time; timeout_seconds leaves no time for another attempt"
    )
    assert list((tmp_path / "parts").glob("*.part"))  # the next run goes on


@pytest.mark.parametrize("bomb", [b"\r\nX-Header: y" * 100, b"x" * 1000], ids=["many", "long"])
def test_headers_without_end_are_given_up(
    origin: HttpHandlerServer, tmp_path: Path, bomb: bytes
) -> None:
    origin.answer = lambda call: call.flood(b"HTTP/1.1 200 OK\r\nX-Long: y", bomb)
    outcome = fetch([f"{base(origin)}/x"], tmp_path)
    assert only_reason(outcome).startswith("the answer is not HTTP")


def test_a_connection_that_is_reset_is_tried_again(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reset() if len(origin.calls) == 1 else call.reply(200, b"x")
    assert contents(fetch([f"{base(origin)}/x"], tmp_path), tmp_path) == {"x": b"x"}


def test_a_host_that_nobody_answers_for_is_unreachable(tmp_path: Path) -> None:
    outcome = fetch([f"http://{LOOPBACK}:{free_port()}/x"], tmp_path, max_retries=1)
    assert only_reason(outcome).startswith("could not connect: ")
    assert outcome.missed[0].unreachable


def test_only_types_that_are_accepted_are_kept(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply(200, b"<html>", Content_Type="text/html; charset=utf-8")
    outcome = fetch([f"{base(origin)}/x"], tmp_path, content_types=["image/*"])
    assert only_reason(outcome) == "the server sent text/html; content_types does not have it"


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/secret",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0:{port}/secret",
        "http://[::1]:{port}/secret",
        "http://[::]:{port}/secret",
        "http://[::ffff:127.0.0.2]:{port}/secret",
        "http://2130706434:{port}/secret",
        "http://0x7f.2:{port}/secret",
        "http://0177.0.0.2:{port}/secret",
        "http://localhost:{port}/secret",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "//127.0.0.2:{port}/secret",
    ],
)
def test_a_redirect_leads_only_where_an_address_may_lead(
    origin: HttpHandlerServer, tmp_path: Path, target: str
) -> None:
    location = target.replace("{port}", str(origin.port))
    origin.answer = lambda call: call.reply(302, Location=location)
    outcome = fetch([f"{base(origin)}/x"], tmp_path)
    assert only_reason(outcome).startswith(f"{base(origin)}/x redirects elsewhere: ")
    assert len(origin.calls) == 1


def test_redirects_are_followed_and_end(origin: HttpHandlerServer, tmp_path: Path) -> None:
    async def answer(call: Call) -> web.StreamResponse:
        path = call.request.path
        if path == "/loop":
            return await call.reply(302, Location="/loop")
        if path == "/end":
            return await call.reply(200, b"x")
        return await call.reply(307, Location="./end?a=1")

    origin.answer = answer
    outcome = fetch([f"{base(origin)}/loop", f"{base(origin)}/start"], tmp_path)
    assert contents(outcome, tmp_path) == {"end": b"x"}
    assert [one.reason for one in outcome.missed] == ["more than 10 redirects (max_redirects)"]


class ChangingResolver(AbstractResolver):
    """A name that leads elsewhere each time it is resolved."""

    def __init__(self, *ips: str) -> None:
        self._ips = list(ips)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        ip = self._ips[min(self.asked, len(self._ips) - 1)]
        self.asked += 1
        return [
            ResolveResult(
                hostname=host, host=ip, port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


def test_a_name_that_leads_to_a_private_address_is_refused(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    resolver = ChangingResolver(LOOPBACK)
    url = f"http://files.example.com:{origin.port}/x"
    outcome = fetch([url], tmp_path, resolver=resolver, allow_hosts=["*.example.com"])
    assert only_reason(outcome) == (
        f"files.example.com leads to {LOOPBACK}, which is a loopback address; "
        f"allow_hosts does not name it"
    )
    assert origin.calls == []


def test_a_name_in_allow_hosts_may_lead_to_a_private_address(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reply(200, b"x")
    url = f"http://files.example.com:{origin.port}/x"
    hosts = ["files.example.com"]
    outcome = fetch([url], tmp_path, resolver=ChangingResolver(LOOPBACK), allow_hosts=hosts)
    assert contents(outcome, tmp_path) == {"x": b"x"}


def test_a_name_that_resolves_differently_the_second_time_gains_nothing(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    """A name is resolved once, by the resolver whose answer is checked, and there is connected to
    what was checked: the second answer is checked too."""
    resolver = ChangingResolver("192.0.2.1", LOOPBACK)  # the first is of documentation: private
    url = f"http://files.example.com:{origin.port}/x"
    outcome = fetch([url], tmp_path, resolver=resolver, allow_hosts=["*"], max_retries=3)
    assert "leads to" in only_reason(outcome)
    public = ChangingResolver("198.18.0.1", LOOPBACK)
    outcome = fetch(
        [url], tmp_path, resolver=public, allow_hosts=["*", "198.18.0.0/15"],
        stall_seconds=0.3, max_retries=1,
    )  # fmt: skip
    assert not outcome.fetched
    assert origin.calls == []


def test_a_login_for_a_host_goes_nowhere_else(origin: HttpHandlerServer, tmp_path: Path) -> None:
    with HttpHandlerServer() as other:
        other.answer = lambda call: call.reply(200, b"x")
        origin.answer = lambda call: call.reply(302, Location=f"{base(other)}/x")
        headers = {f"{LOOPBACK}:{origin.port}": {"Authorization": "Bearer a-secret"}}
        outcome = fetch([f"{base(origin)}/x"], tmp_path, headers=headers)
        assert contents(outcome, tmp_path) == {"x": b"x"}
        assert origin.calls[0].headers["Authorization"] == "Bearer a-secret"
        assert "Authorization" not in other.calls[0].headers


def test_a_login_in_an_address_is_used_and_never_shown(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reply(403)
    url = f"http://me:a-secret@{LOOPBACK}:{origin.port}/x?signature=another-secret"
    outcome = fetch([url], tmp_path)
    assert origin.calls[0].headers["Authorization"].startswith("Basic ")
    assert outcome.missed[0].address == f"{base(origin)}/x?..."
    assert "secret" not in repr(outcome)


def test_one_bad_address_takes_no_other_with_it(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply(404 if call.request.path == "/3" else 200, b"x")
    given = [Address(f"{base(origin)}/{i}", f"{i}.bin") for i in range(5)]
    given += [Address(f"{base(origin)}/up", "../up"), Address("file:///etc/passwd")]
    outcome = fetch(given, tmp_path)
    assert list(contents(outcome, tmp_path)) == ["0.bin", "1.bin", "2.bin", "4.bin"]
    assert [(one.position, one.reason) for one in outcome.missed] == [
        (3, "the server answered 404"),
        (5, "the file name '../up' cannot be used: it contains a path separator"),
        (6, "only http and https are fetched, not 'file'"),
    ]
    assert not any(call.request.path == "/up" for call in origin.calls)


def test_files_of_one_name_are_all_kept(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply(200, call.request.query_string.encode())
    given = [f"{base(origin)}/a.txt?{i}" for i in (1, 2, 2)]
    outcome = fetch(given, tmp_path / "work", files=tmp_path / "out")
    assert len(outcome.fetched) == 3
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(found) == ["a.txt", "a~2.txt", "a~3.txt"]
    assert sorted(found.values()) == [b"1", b"2", b"2"]


def test_a_task_fetched_again_takes_over_what_is_there(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reply(200, call.request.path.encode())
    given = [f"{base(origin)}/{i}" for i in range(4)]
    out = tmp_path / "out"
    fetch(given[:3], tmp_path / "work", files=out)
    (out / "1").write_bytes(b"//")  # as long as before
    (out / "2").unlink()
    counts = Counts()
    outcome = fetch(list(reversed(given)), tmp_path / "work", files=out, counts=counts)
    assert len(outcome.fetched) == 4
    assert (counts.done, counts.before) == (4, 1)
    assert [call.request.path for call in origin.calls[3:]] == ["/3", "/2", "/1"]
    assert (out / "1").read_bytes() == b"//"  # somebody's
    assert (out / "1~2").read_bytes() == b"/1"


@pytest.mark.timeout(900)
def test_5000_addresses_of_a_task_are_fetched(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply(200, call.request.path.encode())
    outcome = fetch([f"{base(origin)}/{i:04}" for i in range(5000)], tmp_path)
    assert outcome.missed == []
    names = [one.file.name for one in outcome.fetched]
    assert names == [f"{i:04}" for i in range(5000)]
    assert all(value.decode() == f"/{name}" for name, value in contents(outcome, tmp_path).items())


def test_never_more_downloads_at_once_than_allowed(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    running, most = 0, 0

    async def answer(call: Call) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        response = await call.reply(200, b"x" * 100_000)
        running -= 1
        return response

    origin.answer = answer
    outcome = fetch([f"{base(origin)}/{i}" for i in range(60)], tmp_path, per_host=3)
    assert len(outcome.fetched) == 60
    assert most <= 3
    assert len(origin.ports) <= 3


def test_a_host_that_many_lead_to_is_asked_as_politely_as_any_other(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    """Four hosts redirect to one; who waits for it is not given up meanwhile."""
    running, most = 0, 0

    async def answer(call: Call) -> web.StreamResponse:
        nonlocal running, most
        if call.request.host.startswith("from"):
            there = f"http://to.example.com:{origin.port}{call.request.path}"
            return await call.reply(302, Location=there)
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)  # the last ones wait for a place longer than for an answer
        running -= 1
        return await call.reply(200, b"x")

    origin.answer = answer
    given = [f"http://from{i % 4}.example.com:{origin.port}/{i}" for i in range(24)]
    outcome = fetch(
        given,
        tmp_path,
        resolver=ChangingResolver(LOOPBACK),
        allow_hosts=["*.example.com", LOOPBACK],
        per_host=2,
        stall_seconds=5,
        max_retries=0,
    )
    assert outcome.missed == []
    assert most <= 2


def test_names_are_resolved_by_the_system(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply(200, b"x")
    url = f"http://localhost:{origin.port}/x"
    outcome = fetch([url], tmp_path, allow_hosts=["localhost"])
    assert contents(outcome, tmp_path) == {"x": b"x"}
    outcome = fetch(["http://no-such-host.invalid/x"], tmp_path, allow_hosts=[], max_retries=0)
    assert only_reason(outcome).startswith("the host's name cannot be resolved")
    assert outcome.missed[0].unreachable


def test_a_task_ends_at_max_task_bytes(origin: HttpHandlerServer, tmp_path: Path) -> None:
    origin.answer = lambda call: call.reply(200, b"x" * 400)
    given = [f"{base(origin)}/{i}" for i in range(5)]
    outcome = fetch(given, tmp_path, max_task_bytes=1000, concurrency=1)
    assert len(outcome.fetched) == 2
    assert {one.reason for one in outcome.missed} == {
        "the task's files have more than max_task_bytes, 1,000 bytes"
    }


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def test_tls_is_verified_and_an_authority_of_ones_own_can_be_given(
    certificate: Path, tmp_path: Path
) -> None:
    with HttpHandlerServer(certificate) as server:
        server.answer = lambda call: call.reply(200, b"x")
        url = f"https://{LOOPBACK}:{server.port}/x"
        refused = only_reason(fetch([url], tmp_path / "not"))
        assert refused.startswith("the certificate is not trusted: ")
        assert server.calls == []
        outcome = fetch([url], tmp_path / "trusted", ca_file=certificate)
        assert contents(outcome, tmp_path / "trusted") == {"x": b"x"}


def test_a_login_is_not_sent_over_http_after_a_redirect_from_https(
    certificate: Path, tmp_path: Path
) -> None:
    with HttpHandlerServer(certificate) as server, HttpHandlerServer() as plain:
        server.answer = lambda call: call.reply(302, Location=f"{base(plain)}/x")
        plain.answer = lambda call: call.reply(200, b"x")
        secret = {"X-Token": "a-secret"}
        headers = {f"{LOOPBACK}:{one.port}": secret for one in (server, plain)}
        url = f"https://{LOOPBACK}:{server.port}/x"
        outcome = fetch([url], tmp_path, ca_file=certificate, headers=headers)
        assert contents(outcome, tmp_path) == {"x": b"x"}
        assert server.calls[0].headers["X-Token"] == "a-secret"
        assert "X-Token" not in plain.calls[0].headers


def test_through_a_proxy_names_are_the_proxys_to_resolve(certificate: Path, tmp_path: Path) -> None:
    with HttpHandlerServer(certificate) as server:
        server.answer = lambda call: call.reply(200, b"x")
        proxy = ConnectProxy(server.port)
        proxy.start()
        try:
            changes = {"allow_hosts": [], "ca_file": certificate, "proxy": proxy.endpoint}
            outcome = fetch(["https://files.example.com/x"], tmp_path, max_retries=0, **changes)
            # The certificate is for 127.0.0.1, so TLS ends it: what was asked for is what counts.
            assert only_reason(outcome).startswith("the certificate is not trusted")
            assert proxy.asked == ["files.example.com:443"]
            for url in ("https://127.0.0.1/x", "https://10.0.0.1/x", "https://[::1]/x"):
                assert "allow_hosts does not name it" in only_reason(
                    fetch([url], tmp_path, **changes)
                )
            assert proxy.asked == ["files.example.com:443"]
        finally:
            proxy.stop()


def test_a_proxy_that_is_down_is_named_without_its_login(tmp_path: Path) -> None:
    proxy = f"http://me:a-secret@{LOOPBACK}:{free_port()}"
    outcome = fetch(["http://example.com/x"], tmp_path, proxy=proxy, allow_hosts=[], max_retries=0)
    assert only_reason(outcome).startswith("the proxy does not connect")
    assert outcome.missed[0].unreachable
    assert "a-secret" not in repr(outcome)
