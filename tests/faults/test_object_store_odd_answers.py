"""Whatever a server answers, the caller gets an error of ours, soon and in bounded memory.

Most of these answers come from something that is not the service: a proxy, a login page, another
product at the address. So each is put to all three clients.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import (
    ColdObject,
    DiskFailed,
    FuploaderError,
    StoreRefused,
    StoreUnavailable,
)
from fuploader_dagster.resources.object_stores.cos import COSSettings
from fuploader_dagster.resources.object_stores.oss import OSSSettings
from fuploader_dagster.resources.object_stores.s3 import S3Settings
from fuploader_dagster.testing.object_store_contract import make_archive
from tests.servers.odd_server import OddRequest, OddServer, make_certificate

CLIENTS = ["s3", "cos", "oss"]
Answering = Callable[[OddRequest], None]


@pytest.fixture
def odd() -> Iterator[OddServer]:
    with OddServer() as server:
        yield server


@pytest.fixture(params=CLIENTS)
def store(
    request: pytest.FixtureRequest, odd: OddServer, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    monkeypatch.setenv("TEST_SECRET", "a-secret")
    monkeypatch.setenv("TEST_TOKEN", "a-token")
    return open_store(request.param, odd)


def open_store(client: str, odd: OddServer, **more: Any) -> ObjectStore:
    secret, token = {"env": "TEST_SECRET"}, {"env": "TEST_TOKEN"}
    settings: Any = {
        "s3": lambda: S3Settings(
            bucket="bucket",
            region="us-east-1",
            endpoint_url=odd.endpoint,
            addressing_style="path",
            access_key_id="id",
            secret_access_key=secret,
            session_token=token,
            read_timeout_seconds=1,
            **more,
        ),
        "cos": lambda: COSSettings(
            bucket="bucket-1250000000",
            region="ap-test",
            scheme=odd.endpoint.partition(":")[0],
            address=f"127.0.0.1:{odd.port}",
            secret_id="id",
            secret_key=secret,
            token=token,
            read_timeout_seconds=1,
            **more,
        ),
        "oss": lambda: OSSSettings(
            bucket="bucket",
            endpoint=odd.endpoint,
            addressing_style="path",
            access_key_id="id",
            access_key_secret=secret,
            security_token=token,
            read_timeout_seconds=1,
            **more,
        ),
    }[client]()
    opened: ObjectStore = settings.resolved().connect()
    return opened


OPERATIONS: dict[str, Callable[[ObjectStore], Any]] = {
    "head": lambda store: store.head("k"),
    "get": lambda store: store.get_range("k", 500, 10),
    "list": lambda store: list(store.list()),
    "uploads": lambda store: store.unfinished(),
}


def refusal(retry_after: str) -> Answering:
    body = b"<Error><Code>SlowDown</Code><Message>m</Message></Error>"
    return lambda request: request.reply(503, body, Retry_After=retry_after)


def xml(text: str) -> Answering:
    whole = f'<?xml version="1.0"?>{text}'.encode()
    return lambda request: request.reply(200, whole, Content_Type="application/xml")


def listing(size: str = "1", more: str = "false") -> Answering:
    return xml(
        f"<ListBucketResult><IsTruncated>{more}</IsTruncated><NextMarker>m</NextMarker>"
        "<NextContinuationToken>t</NextContinuationToken><Contents><Key>a</Key>"
        f"<Size>{size}</Size><ETag>x</ETag><Type>Normal</Type><StorageClass>Standard</StorageClass>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
    )


def uploads(begun: str = "2026-01-01T00:00:00.000Z", more: str = "false") -> Answering:
    return xml(
        f"<ListMultipartUploadsResult><IsTruncated>{more}</IsTruncated>"
        "<NextKeyMarker>m</NextKeyMarker><NextUploadIdMarker>m</NextUploadIdMarker>"
        f"<Upload><Key>a</Key><UploadId>u</UploadId><Initiated>{begun}</Initiated></Upload>"
        "</ListMultipartUploadsResult>"
    )


GROWING = "".join(
    f'<!ENTITY {name} "{f"&{before};" * 20}">'
    for before, name in zip("abcdef", "bcdefg", strict=True)
)
BOMB = f'<!DOCTYPE l [<!ENTITY a "{"a" * 1000}">{GROWING}]><ListBucketResult>&g;</ListBucketResult>'

ODD: dict[str, tuple[str, Answering]] = {
    "Retry-After is a digit of another kind": ("get", refusal("²")),
    "Retry-After of a refused HEAD": ("head", refusal("²")),
    "Retry-After is text": ("get", refusal("Mon, 99 Foo")),
    "Retry-After is long ago": ("get", refusal("Mon, 01 Jan 0001 00:00:00 GMT")),
    "Retry-After is for ever": ("get", refusal("9" * 400)),
    "no header at all": ("head", lambda r: r.reply_raw(b"HTTP/1.1 200 OK\r\n\r\n")),
    "not HTTP": ("head", lambda r: r.reply_raw(b"\x15\x03\x01\x00\x02\x02")),
    "a size that is no number": ("list", listing(size="abc")),
    "a time that is none": ("uploads", uploads(begun="yesterday")),
    "a page that leads to itself": ("list", listing(more="true")),
    "uploads that lead to themselves": ("uploads", uploads(more="true")),
    "no XML": ("list", xml("\x00<<<")),
    "no XML about uploads": ("uploads", xml("<html><p>Please log in")),
    "XML without what it needs": ("list", xml("<ListBucketResult/>")),
    "entities that grow": ("list", xml(BOMB)),
    "the whole instead of a part": ("get", lambda r: r.reply(200, bytes(2000))),
    "another part": (
        "get",
        lambda r: r.reply(206, bytes(10), Content_Range="bytes 600-609/2000"),
    ),
    "more than the part": ("get", lambda r: r.reply(206, bytes(2000))),
    "a redirect": ("get", lambda r: r.reply(302, Location="/elsewhere")),
    "a redirect of HEAD": ("head", lambda r: r.reply(302, Location="/elsewhere")),
    "a redirect of a listing": ("list", lambda r: r.reply(307, Location="/elsewhere")),
    "a redirect to nowhere": ("list", lambda r: r.reply(301)),
    "a head that trickles": (
        "head",
        lambda r: r.trickle(b"HTTP/1.1 200 OK\r\nX-Long: ", b"y"),
    ),
    "a body without end": (
        "get",
        lambda r: r.trickle(b"HTTP/1.1 206 OK\r\nContent-Length: 2000\r\n\r\n", b"y" * 1000),
    ),
}


@pytest.mark.parametrize("what", list(ODD))
def test_an_odd_answer_is_an_error_of_ours_that_names_the_request(
    what: str, odd: OddServer, store: ObjectStore
) -> None:
    operation, odd.answer = ODD[what]
    with pytest.raises(FuploaderError) as caught:
        OPERATIONS[operation](store)
    assert "bucket" in caught.value.message
    assert caught.value.hint
    assert 1 <= len(odd.requests) <= 3


@pytest.mark.parametrize("client", CLIENTS)
def test_a_body_that_trickles_ends_when_its_time_is_up(
    client: str, odd: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SECRET", "a-secret")
    monkeypatch.setenv("TEST_TOKEN", "a-token")
    monkeypatch.setattr("fuploader_dagster.resources.object_stores.ranges.SHORTEST_SECONDS", 0.5)
    odd.answer = lambda r: r.trickle(b"HTTP/1.1 206 OK\r\nContent-Length: 2000\r\n\r\n", b"y")
    with pytest.raises(StoreUnavailable, match="was not complete in time"):
        open_store(client, odd).get_range("k", 500, 1000)


def test_a_server_that_ignores_ranges_fills_no_memory(odd: OddServer, store: ObjectStore) -> None:
    sent = []

    def endless(request: OddRequest) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        request.close_connection = True
        for _ in range(1024):
            request.wfile.write(bytes(1 << 20))
            sent.append(1)

    odd.answer = endless
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreRefused, match="ignores ranges"):
        store.get_range("k", 500, 10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert len(sent) < 1024


@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize("operation", ["list", "uploads", "head"])
def test_an_answer_of_any_length_fills_no_memory(
    odd: OddServer, store: ObjectStore, status: int, operation: str
) -> None:
    sent = []

    def endless(request: OddRequest) -> None:
        if request.command == "HEAD":
            return request.reply(status if status != 200 else 403)
        request.wfile.write(f"HTTP/1.1 {status} Odd\r\n\r\n<Error>".encode())
        request.close_connection = True
        for _ in range(1024):
            request.wfile.write(b" " * (1 << 20))
            sent.append(1)
        return None

    odd.answer = endless
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FuploaderError):
        OPERATIONS[operation](store)
    assert len(sent) < 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_the_token_or_the_archive_to_another_host(
    status: int, odd: OddServer, store: ObjectStore, tmp_path: Path
) -> None:
    with OddServer() as elsewhere:
        elsewhere.answer = lambda request: request.reply(200, ETag='"x"')
        odd.answer = lambda request: (
            request.reply(404)
            if request.command == "HEAD"
            else request.reply(status, Location=f"{elsewhere.endpoint}/stolen")
        )
        for operation in (
            lambda: store.get_range("k", 0, 10),
            lambda: store.put("k", make_archive(tmp_path, 1_000)),
            lambda: list(store.list()),
        ):
            with pytest.raises(FuploaderError, match=str(status)) as caught:
                operation()
            assert "endpoint" in caught.value.hint
        assert elsewhere.requests == []


def test_what_a_refused_head_conceals_is_asked_with_one_get(
    odd: OddServer, store: ObjectStore
) -> None:
    body = b"<Error><Code>ExpiredToken</Code><Message>m</Message></Error>"
    odd.answer = lambda request: request.reply(400, b"" if request.command == "HEAD" else body)
    with pytest.raises(StoreRefused, match="ExpiredToken") as caught:
        store.head("k")
    assert "renew" in caught.value.hint
    asked = [method for method, path in odd.requests if "/k" in path]  # not of the bucket
    assert asked == ["HEAD", "GET"]


def test_an_object_of_a_cold_class_is_said_to_be_cold(odd: OddServer, store: ObjectStore) -> None:
    body = b"<Error><Code>InvalidObjectState</Code><Message>m</Message></Error>"
    odd.answer = lambda request: request.reply(403, body)
    with pytest.raises(ColdObject) as caught:
        store.get_range("k", 0, 10)
    assert "restore" in caught.value.hint


def test_what_a_server_says_cannot_forge_a_line_of_a_log(
    odd: OddServer, store: ObjectStore
) -> None:
    said = "no\u009b[2J\n2026-01-01 ERROR forged" + "x" * 5_000
    body = f"<Error><Code>AccessDenied</Code><Message>{said}</Message></Error>".encode()
    odd.answer = lambda request: request.reply(403, body, Content_Type="application/xml")
    with pytest.raises(StoreRefused) as caught:
        store.get_range("k", 0, 10)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1_000


@pytest.mark.parametrize("client", CLIENTS)
def test_the_environments_logins_and_authorities_do_not_replace_what_is_set(
    client: str, odd: OddServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`requests` would take the login of ~/.netrc for ours."""
    monkeypatch.setenv("TEST_SECRET", "a-secret")
    monkeypatch.setenv("TEST_TOKEN", "a-token")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    assert open_store(client, odd).head("k") is None
    assert not odd.headers[-1]["authorization"].startswith("Basic")


@pytest.mark.parametrize("client", CLIENTS)
def test_the_authority_that_is_set_counts_and_not_the_environments(
    client: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_SECRET", "a-secret")
    monkeypatch.setenv("TEST_TOKEN", "a-token")
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        folder.mkdir()
        make_certificate(folder)
    with OddServer(ours / "tls.pem") as odd:
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"):
            monkeypatch.setenv(name, str(other / "cert.pem"))
        assert open_store(client, odd, ca_bundle=str(ours / "cert.pem")).head("k") is None
        with pytest.raises(StoreRefused, match="not trusted"):
            open_store(client, odd).head("k")
        for name in ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
            monkeypatch.setenv(name, str(ours / "cert.pem"))
        assert open_store(client, odd).head("k") is None
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other / "cert.pem"))
        assert open_store(client, odd, verify_tls=False).head("k") is None


@pytest.mark.parametrize(
    "expected",
    [
        lambda r: r.reply_raw(b"HTTP/1.1 100 Continue\r\nX-Half: y"),
        lambda r: r.reply_raw(b"HTTP/1.1 100 Continue\r\n"),
        lambda r: r.trickle(b"HTTP/1.1 100 Continue\r\n", b"X: y\r\n"),
        lambda r: r.trickle(b"HTTP/1.1 10", b"0"),
    ],
)
def test_a_100_continue_that_has_no_end_is_an_error(
    expected: Answering, odd: OddServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only botocore asks before it sends a body; left alone it reads such an answer for ever."""
    monkeypatch.setenv("TEST_SECRET", "a-secret")
    monkeypatch.setenv("TEST_TOKEN", "a-token")
    odd.expected = expected
    with pytest.raises(StoreUnavailable):
        open_store("s3", odd).put("k", make_archive(tmp_path, 1_000))
    assert [method for method, _ in odd.requests] == ["HEAD"]


def test_a_disk_that_fails_while_an_archive_is_sent_is_not_taken_for_the_network(
    odd: OddServer, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, 1_000)

    def failing(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fuploader_dagster.resources.object_stores.archive_bytes.os.pread", failing)
    with pytest.raises(DiskFailed, match="Input/output error") as caught:
        store.put("k", archive)
    assert str(archive.path) in caught.value.message
