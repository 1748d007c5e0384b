"""A proxy before a real S3 server that answers as other services document it.

    proxy = DialectProxy(swift.port, DefaultKms())

Everything is passed on unchanged except what the dialect answers itself (`instead`) or changes in
an answer (`after`). So the rest is as strict as the server behind it.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import secrets
from dataclasses import dataclass, replace

from tests.servers.faulty_proxy import operation_of
from tests.servers.odd_server import OddRequest, OddServer


@dataclass(frozen=True)
class Reply:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    length: str | None = None
    """Of an answer to HEAD; None: as long as the body, "": not stated."""

    def with_header(self, name: str, value: str | None) -> Reply:
        """The header set, or gone."""
        kept = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        return replace(self, headers=kept if value is None else (*kept, (name, value)))


def refusal(status: int, code: str, message: str = "as documented") -> Reply:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return Reply(status, (("Content-Type", "application/xml"),), body)


class Dialect:
    """Passes everything on. `operation`: as `faulty_proxy.operation_of` names them."""

    def instead(self, operation: str, request: OddRequest) -> Reply | None:
        return None

    def before(self, operation: str, body: bytes) -> bytes:
        return body

    def after(self, operation: str, request: OddRequest, reply: Reply) -> Reply:
        return reply


class DefaultKms(Dialect):
    """A bucket whose default encryption is SSE-KMS: Amazon's answers say so, and no ETag of a part
    or an object is an md5 of anything that a client has."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(16)
        self._real: dict[str, str] = {}

    def before(self, operation: str, body: bytes) -> bytes:
        if operation != "complete":
            return body
        return re.sub(rb"[0-9a-f]{32}", lambda found: self._known(found[0]), body)

    def after(self, operation: str, request: OddRequest, reply: Reply) -> Reply:
        tag = {name.lower(): value for name, value in reply.headers}.get("etag")
        if tag is not None:
            reply = reply.with_header("ETag", re.sub("[0-9a-f]{32}", self._other, tag))
        body = re.sub(
            "(<ETag>[^0-9a-f]*)([0-9a-f]{32})",
            lambda found: found[1] + self._name(found[2]),
            reply.body.decode("latin-1"),
        ).encode("latin-1")
        if operation in ("put", "begin", "part", "complete", "get", "head") and reply.status < 300:
            reply = reply.with_header("x-amz-server-side-encryption", "aws:kms")
        return replace(reply, body=body if operation != "get" else reply.body)

    def _other(self, found: re.Match[str]) -> str:
        return self._name(found[0])

    def _name(self, real: str) -> str:
        name = hashlib.blake2b(real.encode(), key=self._secret, digest_size=16).hexdigest()
        self._real[name] = real
        return name

    def _known(self, name: bytes) -> bytes:
        return self._real.get(name.decode(), name.decode()).encode()


class Refuses(Dialect):
    """Refuses some operations. An answer to HEAD has no body, so no code either."""

    def __init__(self, answer: Reply, *operations: str, header: str = "") -> None:
        self._answer, self._operations, self._header = answer, operations, header
        self.times = 10_000

    def instead(self, operation: str, request: OddRequest) -> Reply | None:
        if operation not in self._operations or self.times == 0:
            return None
        if self._header and self._header not in request.headers:
            return None
        self.times -= 1
        return self._answer


class Drops(Dialect):
    """Leaves out a header of some answers; Content-Length too, of those to HEAD."""

    def __init__(self, header: str, *operations: str, listed: bool = True) -> None:
        self._header, self._operations, self._listed = header, operations, listed

    def after(self, operation: str, request: OddRequest, reply: Reply) -> Reply:
        if operation == "parts" and not self._listed:
            return replace(reply, body=re.sub(rb"<ETag>[^<]*</ETag>", b"", reply.body))
        if operation not in self._operations or reply.status >= 300:
            return reply
        if self._header == "Content-Length":
            return replace(reply, length="")
        return reply.with_header(self._header, None)


class DialectProxy(OddServer):
    """`requests` are those of the client. Use as a context manager."""

    def __init__(self, upstream_port: int, *dialects: Dialect) -> None:
        super().__init__()
        self._port = upstream_port
        self.dialects = dialects
        self.answer = self._translate

    def count(self, operation: str) -> int:
        return sum(operation_of(*request) == operation for request in self.requests)

    def _translate(self, request: OddRequest) -> None:
        operation = operation_of(request.command, request.path)
        answers = (each.instead(operation, request) for each in self.dialects)
        reply = next((each for each in answers if each is not None), None)
        if reply is None:
            reply = self._forward(operation, request)
            for each in self.dialects:
                reply = each.after(operation, request, reply)
        request.send_response_only(reply.status)
        length = str(len(reply.body)) if reply.length is None else reply.length
        headers = reply.headers + ((("Content-Length", length),) if length else ())
        for name, value in headers:
            request.send_header(name, value)
        # An answer to HEAD ends with its headers, so the connection stays: closed without a word
        # it would take the client's next request with it, or not, as the moment falls.
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(reply.body)

    def _forward(self, operation: str, request: OddRequest) -> Reply:
        body = request.body
        for each in self.dialects:
            body = each.before(operation, body)
        upstream = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            upstream.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() not in ("expect", "connection", "content-length"):
                    upstream.putheader(name, value)
            if "Content-Length" in request.headers:
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            data = answer.read()
            kept = tuple(
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "content-length")
            )
            length = answer.getheader("Content-Length") if request.command == "HEAD" else None
            return Reply(answer.status, kept, data, length)
        finally:
            upstream.close()
