"""Files as answers: whole or a range of them, piece by piece.

What must always hold: the client gets all the bytes that were announced, or sees that the
connection broke: a file that turns out to be damaged is never completed. No browser runs it: its
type is one of a few, or none in particular, and it is to be saved. A client that leaves ends the
reading.
"""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.front.answers import Refusal, error_answer
from fuploader_dagster.lookup.files import OpenFile

log = logging.getLogger(__name__)

OCTETS = "application/octet-stream"
SAFE_TYPES = frozenset(
    {
        *("application/json", "application/pdf", "application/zip", "application/gzip"),
        *("audio/mpeg", "audio/ogg", "audio/wav", "text/csv", "text/plain"),
        *("image/avif", "image/bmp", "image/gif", "image/jpeg", "image/png", "image/tiff"),
        *("image/webp", "video/mp4", "video/mpeg", "video/ogg", "video/webm"),
    }
)
"""Nothing that has scripts: no HTML, SVG or XML."""

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TYPE = re.compile(r"[a-z0-9.+-]+/[a-z0-9.+-]+")

Pieces = Callable[[], Iterator[bytes | memoryview]]


def safe_type(content_type: str, name: str) -> str:
    """The type to announce: what was kept with the file, else what its name says, if it is safe."""
    kept = content_type.partition(";")[0].strip().lower()
    if not _TYPE.fullmatch(kept):
        kept = mimetypes.guess_type(name)[0] or OCTETS
    return kept if kept in SAFE_TYPES else OCTETS


def headers_to_save(name: str, content_type: str) -> dict[str, str]:
    """Headers with which any content is harmless in a browser."""
    last = name.rpartition("/")[2]
    text = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in last)
    encoded = quote(last.encode("utf-8", "replace"), safe="")
    return {
        "content-type": content_type,
        "content-disposition": f"attachment; filename=\"{text}\"; filename*=UTF-8''{encoded}",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "cache-control": "private, no-cache",
    }


def headers_of_file(file: OpenFile) -> dict[str, str]:
    kept = {name.lower().replace("_", "-"): value for name, value in file.headers.items()}
    headers = headers_to_save(file.name, safe_type(kept.get("content-type", ""), file.name))
    if file.digest:
        headers["etag"] = f'"{file.digest.hex()}"'
    if file.partition:
        headers["fuploader-partition"] = file.partition
    return headers


@dataclass
class _Part:
    """The bytes that are sent, of so many."""

    start: int
    stop: int


class FileAnswer(Response):
    """The file, or the one range of it that the request asks for."""

    def __init__(
        self,
        pieces: Pieces,
        size_bytes: int,
        headers: Mapping[str, str],
        request: Request,
        close: Callable[[], object],
    ) -> None:
        self._pieces = pieces
        self._size = size_bytes
        self._close = close
        self._etag = headers.get("etag", "")
        self._is_head = request.method == "HEAD"
        status, self._part, more = self._asked(request)
        super().__init__(None, status, {**headers, "accept-ranges": "bytes", **more})
        if status == 304:
            del self.headers["content-type"]

    def _asked(self, request: Request) -> tuple[int, _Part, dict[str, str]]:
        """Status, what is sent, and what is said about that."""
        whole = _Part(0, self._size)
        known = [one.strip() for one in request.headers.get("if-none-match", "").split(",")]
        if self._etag and ("*" in known or self._etag in known or f"W/{self._etag}" in known):
            return 304, _Part(0, 0), {}
        asked = _RANGE.fullmatch(request.headers.get("range", ""))
        only_if = request.headers.get("if-range")
        first, last = asked.groups() if asked else ("", "")
        if not (first or last) or (only_if is not None and only_if != self._etag):
            return 200, whole, {"content-length": str(self._size)}
        if first:
            stop = min(int(last) + 1, self._size) if last else self._size
            part = _Part(int(first), stop)
            if last and int(last) < int(first):  # no range: it does not count
                return 200, whole, {"content-length": str(self._size)}
        else:
            part = _Part(max(self._size - int(last), 0), self._size)
        if part.start >= part.stop:
            return 416, _Part(0, 0), {"content-range": f"bytes */{self._size}"}
        said = {
            "content-range": f"bytes {part.start}-{part.stop - 1}/{self._size}",
            "content-length": str(part.stop - part.start),
        }
        return 206, part, said

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self.status_code == 416:
                refusal = Refusal(
                    416,
                    f"the file has {self._size:,} bytes, and none of those",
                    headers={"content-range": self.headers["content-range"]},
                )
                await error_answer(refusal)(scope, receive, send)
                return
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            if not self._is_head and self._part.start < self._part.stop:
                await send_pieces(_within(self._pieces(), self._part), receive, send)
            else:
                await send({"type": "http.response.body", "body": b""})
        finally:
            await asyncio.to_thread(self._close)


async def send_pieces(pieces: Iterator[bytes | memoryview], receive: Receive, send: Send) -> None:
    """Send a body whose headers are sent. Damage is logged, and ends the connection in the middle:
    the body is not completed."""
    left = asyncio.ensure_future(_left(receive))
    try:
        async for piece in iterate_in_threadpool(pieces):
            if left.done():
                return
            await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except (FuploaderError, OSError) as error:
        log.error("an answer was broken off: %s", error)
    finally:
        left.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _within(pieces: Iterator[bytes | memoryview], part: _Part) -> Iterator[bytes | memoryview]:
    """The part of all pieces. Those before it are read, those after it are not: of a large file, a
    range that ends before it does is not compared with the file's digest."""
    at = 0
    for piece in pieces:
        start, stop = max(part.start - at, 0), min(part.stop - at, len(piece))
        at += len(piece)
        if start < stop:
            yield piece[start:stop]
        if at >= part.stop:
            return
