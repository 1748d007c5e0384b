"""One address becomes one file.

What must always hold:

- A file that is called finished has as many bytes as the server announced, at most `max_bytes`, and
  all of them are of one version: the rest of a file is added only if the server says that it
  belongs to the bytes that are here (If-Range, Content-Range).
- Whatever a server does, an attempt ends: it has `stall_seconds` to connect and for the headers,
  and while the file comes it has to bring 1 KiB a second, on average over as long. It never holds
  more than a few hundred kilobytes in memory.
- Each redirect is checked as the address itself was.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from fuploader_dagster.fetching import answers
from fuploader_dagster.fetching.connections import Connections
from fuploader_dagster.fetching.failures import NotFetched, Passing, Refused
from fuploader_dagster.fetching.lanes import Lanes
from fuploader_dagster.fetching.part_file import PartFile
from fuploader_dagster.fetching.places import shown
from fuploader_dagster.settings.safe_text import in_a_line

if TYPE_CHECKING:
    from fuploader_dagster.fetching.settings import Fetch

LEAST_BYTES_PER_SECOND = 1024
_UNPACKED_BYTES = 256 * 1024
_QUOTED = 200


@dataclass(frozen=True)
class Answer:
    """Where a file came from and what the server said about it."""

    url: URL
    headers: Any
    """Those of the answer: a mapping that does not care about capital letters."""


Count = Callable[[int], None]
"""Gets the number of bytes that just came, or (below 0) that were given up; raises `Refused` if
they are too many."""


class Download:
    """The attempts for one address. `attempt` may be called again after it raised `Passing`."""

    def __init__(
        self,
        url: URL,
        part: PartFile,
        *,
        settings: Fetch,
        connections: Connections,
        lanes: Lanes,
        count: Count,
    ) -> None:
        self._url = url
        self._part = part
        self._settings = settings
        self._connections = connections
        self._lanes = lanes
        self._count = count
        self.deadline = math.inf
        """Of the event loop's clock; known once there was a place. Waiting for places does not
        count."""
        self._resumes = True
        """Whether the server may be asked for the rest of a file."""

    async def attempt(self) -> Answer:
        """Fetch what is missing. Raises `NotFetched`, and `DiskFull` or `DiskFailed`."""
        try:
            return await self._follow()
        except NotFetched:
            raise
        except (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError) as error:
            raise meaning_of(error) from None
        except (ValueError, UnicodeError) as error:  # an address that aiohttp finds unusable
            raise Refused(f"this address cannot be asked for: {_said(error)}") from None
        finally:
            self._part.close()

    async def _follow(self) -> Answer:
        url, with_login = self._url, True
        for _ in range(self._settings.max_redirects + 1):
            async with self._place(url):
                response = await self._ask(url, with_login)
                try:
                    if response.status not in answers.REDIRECTS:
                        await self._take(response)
                        return Answer(url, response.headers)
                    if not (location := response.headers.get("Location", "")):
                        raise Refused(f"the server answered {response.status} without a Location")
                finally:
                    response.release()  # closes the connection unless all of the answer was read
            before, url = url, self._redirected(url, location)
            with_login = with_login and not (before.scheme == "https" != url.scheme)
        raise Refused(f"more than {self._settings.max_redirects} redirects (max_redirects)")

    @asynccontextmanager
    async def _place(self, url: URL) -> AsyncIterator[None]:
        """A place for the host: where an address leads has a limit too."""
        now = asyncio.get_running_loop().time
        since = now()
        async with self._lanes.place(url.raw_host or ""):
            if self.deadline == math.inf:
                self.deadline = now() + self._settings.timeout_seconds
            else:
                self.deadline += now() - since
            yield

    def _redirected(self, url: URL, location: str) -> URL:
        try:
            text = location.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            return self._connections.places.checked(text, base=url)
        except Refused as error:
            raise Refused(f"{shown(url)} redirects elsewhere: {error.reason}") from None

    async def _ask(self, url: URL, with_login: bool) -> aiohttp.ClientResponse:
        """The answer's status and headers."""
        part = self._part
        headers = {}
        if self._resumes and part.size_bytes and part.validator:
            headers = {"Range": f"bytes={part.size_bytes}-", "If-Range": part.validator}
        seconds = min(
            2 * self._settings.stall_seconds, self.deadline - asyncio.get_running_loop().time()
        )
        try:
            answer: aiohttp.ClientResponse = await asyncio.wait_for(
                self._connections.get(url, headers, with_login=with_login), max(seconds, 0.001)
            )
        except aiohttp.ConnectionTimeoutError:
            raise Passing("no connection within stall_seconds", unreachable=True) from None
        except (asyncio.TimeoutError, TimeoutError):
            raise Passing("no answer within stall_seconds", unreachable=True) from None
        return answer

    async def _take(self, response: aiohttp.ClientResponse) -> None:
        """Add the answer's bytes to the part, which is whole afterwards."""
        part, headers = self._part, response.headers
        status = response.status
        if status == answers.OUT_OF_RANGE and part.size_bytes:
            self._begin_again("the server has no more of this file than was here")
        if status == answers.REST:
            total = answers.continues(headers, part.size_bytes, part.total_bytes, part.validator)
            if not part.size_bytes or total is None:
                self._begin_again("the server answered with another range than was asked for")
            part.go_on()
            part.total_bytes = total
        elif status in answers.WHOLE:
            answers.check_type(headers, self._settings.content_types)
            self._count(-part.size_bytes)
            packed = self._packing(headers)
            total = None if packed else answers.length_of(headers)
            part.begin("" if packed else answers.validator_of(headers), total)
        else:
            raise answers.error_of(status, headers)
        self._check_size(total or 0)
        packing = self._packing(headers)
        pieces = self._pieces(response)
        async for piece in _unpacked(pieces, packing) if packing else pieces:
            self._check_size(part.size_bytes + len(piece))
            self._count(len(piece))
            part.write(piece)
        if total is not None and part.size_bytes != total:
            raise Passing(f"{part.size_bytes:,} of {total:,} bytes came")
        part.total_bytes = part.size_bytes

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The answer's body. Raises `Passing` if it comes too slowly."""
        now = asyncio.get_running_loop().time
        window = self._settings.stall_seconds
        since, came = now(), 0
        content = response.content
        while piece := await content.readany():
            came += len(piece)
            moment = now()
            if moment > self.deadline:
                raise Passing("the file did not come in time")
            if moment - since > window:
                if came < LEAST_BYTES_PER_SECOND * (moment - since):
                    raise Passing(f"{came:,} bytes came in {moment - since:.0f} seconds")
                since, came = moment, 0
            yield piece

    def _packing(self, headers: Any) -> str:
        """How the body is packed, if it is to be unpacked here."""
        named = str(headers.get("Content-Encoding", "")).strip().lower()
        if not self._settings.decode or named in ("", "identity"):
            return ""
        if named not in ("gzip", "x-gzip", "deflate"):
            raise Refused(f"the server sent Content-Encoding {in_a_line(named[:40])}, unasked")
        return named

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._settings.max_bytes:
            raise Refused(f"the file has more than max_bytes, {self._settings.max_bytes:,} bytes")

    def _begin_again(self, why: str) -> None:
        self._resumes = False
        self._count(-self._part.size_bytes)
        self._part.discard()
        raise Passing(why)


async def _unpacked(pieces: AsyncIterator[bytes], packing: str) -> AsyncIterator[bytes]:
    """In pieces that are small however well the body is packed."""
    unpack: Any = None
    try:
        async for packed in pieces:
            left = packed
            while left:
                if unpack is None or unpack.eof:
                    unpack = _unpacker(packing, left)
                piece = unpack.decompress(left, _UNPACKED_BYTES)
                left = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
                if piece:
                    yield piece
            while unpack is not None and not unpack.eof:
                if not (piece := unpack.decompress(b"", _UNPACKED_BYTES)):
                    break
                yield piece
    except zlib.error as error:
        raise Passing(f"what came cannot be unpacked: {error}") from None
    if unpack is not None and not unpack.eof:
        raise Passing("the packed file was cut short")


def _unpacker(packing: str, start: bytes) -> Any:
    if packing != "deflate":
        return zlib.decompressobj(31)
    return zlib.decompressobj(15 if start[0] & 0x0F == 8 else -15)  # some servers send it bare


def meaning_of(error: BaseException) -> NotFetched:  # noqa: PLR0911  a list of cases
    """What an error of a connection means. Its text may name the address, so it is not passed on
    as a cause."""
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError)):
        cause = getattr(error, "certificate_error", error)
        return Refused(f"the certificate is not trusted: {_said(cause)}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Passing(f"the host's name cannot be resolved: {_cause(error)}", unreachable=True)
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        return Passing(f"the proxy does not connect: {_cause(error)}", unreachable=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        return Passing(f"could not connect: {_cause(error)}", unreachable=True)
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return Passing("the server fell silent for stall_seconds")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Passing("the answer was cut short")
    if isinstance(error, aiohttp.ClientResponseError):
        return Refused(f"the answer is not HTTP: {in_a_line(error.message[:_QUOTED])}")
    if isinstance(error, aiohttp.InvalidURL):
        return Refused("this address cannot be asked for")
    return Passing(f"the connection was lost: {_cause(error)}", unreachable=True)


def _cause(error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    text = getattr(cause, "strerror", None) or getattr(cause, "message", None)
    return in_a_line(str(text)[:_QUOTED]) if text else type(cause).__name__


def _said(error: BaseException) -> str:
    text = getattr(error, "verify_message", None) or type(error).__name__
    return in_a_line(str(text)[:_QUOTED])


def wait_seconds(error: Passing, attempt: int, first_seconds: float) -> float:
    """The pause before the next attempt; `attempt` counts from 1."""
    own: float = min(first_seconds * 2 ** (attempt - 1), 300.0)
    return max(own, error.retry_after_seconds or 0.0)
