"""One bucket in memory behind HTTP, as far as COS and OSS have their API in common.

Both took the API from S3: uploads in parts, listings in pages, ranges, Content-MD5, errors as
XML. A subclass adds its service's dialect: header names, and above all the check of the signature.
It answers what the service documents, and is strict where that finds mistakes: a wrong md5, a
listing longer than a page, parts out of order, a part below the minimum are refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import crcmod

from tests.servers.faulty_proxy import operation_of
from tests.servers.quiet_http import QuietHTTPServer


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire."""

    method: str
    path: str
    """Decoded."""
    raw_path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message or f"The code is {code}."


@dataclass
class StoredFile:
    content: bytes
    etag: str
    headers: dict[str, str]


@dataclass
class Upload:
    key: str
    headers: dict[str, str]
    begun_at: float
    parts: dict[int, bytes] = field(default_factory=dict)


class FakeBucket(ABC):
    """`start`, then use `endpoint`; look into `files`, `uploads` and `counts`; `stop`."""

    prefix: str
    """Of the service's headers: `x-cos-` or `x-oss-`."""
    min_part_bytes: int
    page_size = 3
    """Listings are cut into pages this small, so that every test turns some."""

    def __init__(self, bucket: str, key_id: str, secret: str, token: str = "") -> None:
        self.bucket, self.key_id, self.secret, self.token = bucket, key_id, secret, token
        self.files: dict[str, StoredFile] = {}
        self.uploads: dict[str, Upload] = {}
        self.counts: Counter[str] = Counter()
        self.lock = threading.RLock()
        self.fail_late_once = False
        """The next completion answers 200 with an error in its body, as the services document."""
        self.versioned = False
        self.versions: dict[str, str] = {}
        """Of a bucket with versions, those of objects and marks of deletion, with their keys."""
        self.encrypts_with = ""
        """Encryption by default with that: answers say so, and no ETag is an md5."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self.port: int = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @abstractmethod
    def check_signature(self, request: Request) -> None:
        """Raise `Refusal` unless the request is signed by our key, by the published algorithm."""

    @abstractmethod
    def key_of(self, request: Request) -> str:
        """The object's key, empty for the bucket itself. Raises `Refusal` for another bucket."""

    @abstractmethod
    def objects_page(self, query: Mapping[str, str], keys: list[str]) -> bytes:
        """A page of the bucket's listing."""

    def answer(self, request: Request, operation: str) -> Answer:
        """What the service answers. `keys` never begin with a slash."""
        self.check_signature(request)
        key = self.key_of(request)
        with self.lock:
            self.counts[operation] += 1
            method = getattr(self, f"_{operation}")
            answer: Answer = method(key, request)
            if self.encrypts_with and operation in ("put", "head", "get", "begin", "part"):
                answer.headers[f"{self.prefix}server-side-encryption"] = self.encrypts_with
            return answer

    def _tag(self, content: bytes) -> str:
        """The md5, in capitals; or something of that form, where objects are encrypted."""
        return _md5(self.encrypts_with.encode() + content).hex().upper()

    def _put(self, key: str, request: Request) -> Answer:
        self._check_md5(request)
        self._refuse_overwriting(key, request)
        etag = f'"{self._tag(request.body)}"'
        headers = self._kept(request) | self._new_version(key)
        self.files[key] = StoredFile(request.body, etag, headers)
        return Answer(200, {"ETag": etag, **self._crc(request.body)})

    def _head(self, key: str, request: Request) -> Answer:
        return self._get(key, request)

    def _get(self, key: str, request: Request) -> Answer:
        if key not in self.files:
            raise Refusal(404, "NoSuchKey")
        file = self.files[key]
        headers = {"ETag": file.etag, **self._crc(file.content), **file.headers}
        wanted = request.headers.get("range")
        if wanted is None:
            return Answer(200, headers, file.content)
        first, last = (int(each) for each in wanted.removeprefix("bytes=").split("-"))
        if first >= len(file.content):
            return self._range_past_the_end(request, headers, file.content)
        body = file.content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(file.content)}"
        return Answer(206, headers, body)

    def _range_past_the_end(
        self, request: Request, headers: dict[str, str], content: bytes
    ) -> Answer:
        raise Refusal(416, "InvalidRange")

    def _delete(self, key: str, request: Request) -> Answer:
        version = request.query.get("versionId", "")
        file = self.files.get(key)
        if version:
            self.versions.pop(version, None)
        elif self.versioned:
            self._new_version(key)
        if not version or (file and file.headers.get(f"{self.prefix}version-id") == version):
            self.files.pop(key, None)
        return Answer(204)

    def _new_version(self, key: str) -> dict[str, str]:
        if not self.versioned:
            return {}
        version = secrets.token_hex(8)
        self.versions[version] = key
        return {f"{self.prefix}version-id": version}

    def _begin(self, key: str, request: Request) -> Answer:
        self._refuse_overwriting(key, request)
        upload_id = secrets.token_hex(16)
        self.uploads[upload_id] = Upload(key, self._kept(request), time.time())
        return _xml(
            "InitiateMultipartUploadResult",
            f"<Bucket>{self.bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<UploadId>{upload_id}</UploadId>",
        )

    def _part(self, key: str, request: Request) -> Answer:
        self._check_md5(request)
        self._upload(key, request).parts[int(request.query["partNumber"])] = request.body
        etag = f'"{self._tag(request.body)}"'
        return Answer(200, {"ETag": etag, **self._crc(request.body)})

    def _parts(self, key: str, request: Request) -> Answer:
        parts = self._upload(key, request).parts
        after = int(request.query.get("part-number-marker") or 0)
        numbers = sorted(number for number in parts if number > after)
        page = numbers[: self.page_size]
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><Size>{len(parts[number])}</Size>"
            f"<LastModified>{_iso(time.time())}</LastModified>"
            f"<ETag>&quot;{self._tag(parts[number])}&quot;</ETag></Part>"
            for number in page
        )
        marker = f"<NextPartNumberMarker>{page[-1] if page else 0}</NextPartNumberMarker>"
        return _xml("ListPartsResult", marker + _truncated(page, numbers) + listed)

    def _complete(self, key: str, request: Request) -> Answer:
        upload = self._upload(key, request)
        named = [
            (int(_text(part, "PartNumber")), _text(part, "ETag").strip('"').lower())
            for part in ET.fromstring(request.body).iter("Part")  # noqa: S314 - from our own client
        ]
        if [number for number, _ in named] != sorted({number for number, _ in named}):
            raise Refusal(400, "InvalidPartOrder")
        for number, etag in named:
            if self._tag(upload.parts.get(number, b"")).lower() != etag:
                raise Refusal(400, "InvalidPart")
        bodies = [upload.parts[number] for number, _ in named]
        if any(len(body) < self.min_part_bytes for body in bodies[:-1]):
            raise Refusal(400, "EntityTooSmall")
        self._refuse_overwriting(key, request)
        if self.fail_late_once:
            self.fail_late_once = False
            return Answer(200, {}, b"<Error><Code>InternalError</Code><Message>m</Message></Error>")
        content = b"".join(bodies)
        md5s = b"".join(_md5(body) for body in bodies)
        etag = f'"{_md5(md5s).hex().upper()}-{len(bodies)}"'
        self.files[key] = StoredFile(content, etag, upload.headers | self._new_version(key))
        del self.uploads[request.query["uploadId"]]
        answer = _xml(
            "CompleteMultipartUploadResult",
            f"<Bucket>{self.bucket}</Bucket><Key>{escape(key)}</Key><ETag>{escape(etag)}</ETag>",
        )
        answer.headers.update(self._crc(content))
        return answer

    def _abort(self, key: str, request: Request) -> Answer:
        self._upload(key, request)
        del self.uploads[request.query["uploadId"]]
        return Answer(204)

    def _uploads(self, key: str, request: Request) -> Answer:
        query = request.query
        after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        found = sorted(
            (upload.key, upload_id)
            for upload_id, upload in self.uploads.items()
            if upload.key.startswith(query.get("prefix", "")) and (upload.key, upload_id) > after
        )
        page = found[: self.page_size]
        last = page[-1] if page else ("", "")
        listed = "".join(
            f"<Upload><Key>{quote(name)}</Key><UploadId>{upload_id}</UploadId>"
            f"<Initiated>{_iso(self.uploads[upload_id].begun_at)}</Initiated></Upload>"
            for name, upload_id in page
        )
        return _xml(
            "ListMultipartUploadsResult",
            "<EncodingType>url</EncodingType>"
            f"<NextKeyMarker>{quote(last[0])}</NextKeyMarker>"
            f"<NextUploadIdMarker>{last[1]}</NextUploadIdMarker>"
            + _truncated(page, found)
            + listed,
        )

    def _list(self, key: str, request: Request) -> Answer:
        start = request.query.get("prefix", "")
        keys = sorted(
            (name for name in self.files if name.startswith(start)), key=lambda name: name.encode()
        )
        return Answer(
            200, {"Content-Type": "application/xml"}, self.objects_page(request.query, keys)
        )

    def contents(self, keys: list[str]) -> str:
        return "".join(
            f"<Contents><Key>{quote(key)}</Key><Size>{len(self.files[key].content)}</Size>"
            f"<ETag>{escape(self.files[key].etag)}</ETag><Type>Normal</Type>"
            f"<LastModified>{_iso(time.time())}</LastModified>"
            "<StorageClass>Standard</StorageClass></Contents>"
            for key in keys
        )

    def _upload(self, key: str, request: Request) -> Upload:
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or upload.key != key:
            raise Refusal(404, "NoSuchUpload")
        return upload

    def _refuse_overwriting(self, key: str, request: Request) -> None:
        if request.headers.get(f"{self.prefix}forbid-overwrite") == "true" and key in self.files:
            raise Refusal(409, "FileAlreadyExists")

    def _check_md5(self, request: Request) -> None:
        stated = request.headers.get("content-md5")
        if stated is None:
            return
        try:
            wanted = base64.b64decode(stated, validate=True)
        except binascii.Error:
            raise Refusal(400, "InvalidDigest") from None
        if _md5(request.body) != wanted:
            raise Refusal(400, "BadDigest")

    def _kept(self, request: Request) -> dict[str, str]:
        """Headers that stay with the object."""
        kept = tuple(
            self.prefix + name for name in ("meta-", "storage-class", "server-side", "tagging")
        )
        return {name: value for name, value in request.headers.items() if name.startswith(kept)}

    def _crc(self, content: bytes) -> dict[str, str]:
        return {f"{self.prefix}hash-crc64ecma": str(_CRC(content))}


_CRC = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, initCrc=0, xorOut=0xFFFFFFFFFFFFFFFF, rev=True)


class _Server(QuietHTTPServer):
    fake: FakeBucket


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _do(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if len(body) < int(self.headers.get("Content-Length") or 0):
            self.close_connection = True
            return  # a torn request changes nothing
        request = Request(
            self.command,
            unquote(parts.path),
            parts.path,
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            body,
        )
        try:
            answer = self.server.fake.answer(request, operation_of(self.command, self.path))
        except Refusal as refusal:
            answer = _xml(
                "Error",
                f"<Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message>"
                "<Resource>r</Resource><RequestId>1</RequestId><TraceId>t</TraceId>",
            )
            answer.status = refusal.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _do  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Quiet: `counts` is the record."""


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _xml(root: str, inside: str) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?><{root}>{inside}</{root}>'
    return Answer(200, {"Content-Type": "application/xml"}, text.encode())


def _truncated(page: list[object] | list[str], all_of_them: list[object] | list[str]) -> str:
    return f"<IsTruncated>{str(len(page) < len(all_of_them)).lower()}</IsTruncated>"


def _text(element: ET.Element, name: str) -> str:
    return element.findtext(name) or ""


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))
