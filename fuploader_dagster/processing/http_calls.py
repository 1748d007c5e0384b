"""Calls of a handler behind HTTP. What must hold, and how a request looks: `http`."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from fuploader_dagster.contracts.processor import Item, Processor, Result
from fuploader_dagster.errors import UNREADABLE_JSON, BadItem, RetryItem
from fuploader_dagster.processing.http_answers import (
    JSON_TYPE,
    Reading,
    Refusal,
    error_for,
    read_results,
)
from fuploader_dagster.processing.http_connection import connect_hint, reason_of, tls_context
from fuploader_dagster.settings.http_headers import TOKEN, usable_content_type
from fuploader_dagster.settings.safe_text import in_a_line

if TYPE_CHECKING:
    import aiohttp

    from fuploader_dagster.processing.http import HttpHandler

ITEM_HEADER = "X-Fuploader-"
"""Begins the names of headers that say what is known of an item."""
QUOTED_CHARACTERS = 200
_READ_OF_A_REFUSAL = 16 * 1024
_LARGE_BODY = 512 * 1024
"""aiohttp sends larger ones in pieces if they come as a file, so that others get their turn."""
_SHORTEST_SECRET = 6
_BYTES_TYPE = "application/octet-stream"
_NAME_HEADER = f"{ITEM_HEADER}Name"
_PLAIN = re.compile(r"[!-$&-~]([ -$&-~]*[!-$&-~])?")
"""What a header can say as it is, at once."""
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class HttpProcessor(Processor):
    """Sends items to a handler and reads its answers."""

    def __init__(self, settings: HttpHandler) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._tried = f"POST to {settings.describe()}"
        self._secret_texts = _secret_texts(settings)
        path = settings.answer or "."
        self._reading = Reading(
            as_json=settings.answer is not None or settings.wrap is not None or settings.batch > 1,
            path=() if path == "." else tuple(path.split(".")),
            per_item=settings.batch > 1,
        )
        if settings.wrap is not None:
            self._around = (b"{" + msgspec.json.encode(settings.wrap) + b":[", b"]}")
        else:
            self._around = (b"[", b"]") if settings.batch > 1 else (b"", b"")

    async def open(self) -> None:
        import aiohttp  # noqa: PLC0415  loading settings must not import it

        settings = self._settings
        https = settings.address().scheme == "https"
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        given = {name.lower() for name in headers}
        self._type_is_given = "content-type" in given
        ours = {
            "User-Agent": "fuploader-dagster",
            "Accept": JSON_TYPE if self._reading.as_json else "*/*",
            "Content-Type": JSON_TYPE if settings.body == "json" else _BYTES_TYPE,
        }
        headers |= {name: value for name, value in ours.items() if name.lower() not in given}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.concurrency, ssl=tls_context(settings) if https else True
            ),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_seconds),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def process(self, items: Sequence[Item]) -> Sequence[Sequence[Result] | BadItem]:
        if self._settings.body == "raw":
            (item,) = items
            return await self._results(item.content, items)
        answers: list[Sequence[Result] | BadItem] = []
        sent: list[Item] = []
        for item in items:
            try:
                msgspec.json.decode(item.content, type=msgspec.Raw)
                sent.append(item)
                answers.append([])
            except UNREADABLE_JSON as error:  # it would take the others of the batch with it
                reason = f"its content is not JSON, as body: json needs it: {error}"
                answers.append(BadItem(reason, answered=False))
        if not sent:
            return answers
        before, after = self._around
        body = before + b",".join(item.content for item in sent) + after
        results = iter(await self._results(body, sent))
        return [one if isinstance(one, BadItem) else next(results) for one in answers]

    async def _results(
        self, body: bytes, items: Sequence[Item]
    ) -> Sequence[Sequence[Result] | BadItem]:
        """The results of items that are sent in this body."""
        try:
            content, content_type = await self._post(body, self._headers(items))
            return read_results(self._tried, content, content_type, self._reading, len(items))
        except BadItem as error:
            if len(items) > 1:  # nobody knows which one it is
                raise
            return [error]

    def _headers(self, items: Sequence[Item]) -> dict[str, str]:
        """Those of one request."""
        keys = [item.key for item in items]
        key = keys[0] if len(keys) == 1 else hashlib.sha256("\n".join(keys).encode()).hexdigest()
        headers = {"Idempotency-Key": key} if key else {}
        if self._settings.batch > 1:
            return headers
        (item,) = items
        for name, value in item.headers.items():
            if name.lower() == "content-type" and not self._type_is_given:
                headers["Content-Type"] = usable_content_type(value) or _BYTES_TYPE
            if name.lower() != "name":
                headers[ITEM_HEADER + quote(name, safe=TOKEN)] = _encoded(value)
        headers[_NAME_HEADER] = _encoded(item.name)
        return headers

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, str]:
        """A successful answer and its content type. Raises `BadItem` or `RetryItem`."""
        import aiohttp  # noqa: PLC0415  `open` imported it

        assert self._session is not None, "open() comes first"  # noqa: S101 - part of the contract
        data = body if len(body) < _LARGE_BODY else io.BytesIO(body)
        answered = False
        try:
            async with self._session.post(
                self._settings.url, data=data, headers=headers, allow_redirects=False
            ) as answer:
                answered = True
                if 200 <= answer.status < 300:
                    content = await self._content(answer)
                    return content, usable_content_type(answer.headers.get("Content-Type", ""))
                refusal = await self._refusal(answer)
        except (asyncio.TimeoutError, TimeoutError):
            said = "the answer was not complete" if answered else "there was no answer"
            raise RetryItem(
                f"{self._tried}: {said} after {self._settings.timeout_seconds:g} seconds",
                hint="if the handler needs longer, raise timeout_seconds or lower concurrency",
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Not chained: the text of such errors may have all of `url` in it.
            raise self._failed(error, answered) from None
        raise error_for(self._tried, refusal, time.time())

    async def _content(self, answer: aiohttp.ClientResponse) -> bytes:
        """An answer's body. Raises `BadItem` if it is too large."""
        most = self._settings.max_result_bytes
        length = answer.content_length
        if length is not None and length > most:
            raise self._too_large(answer)
        if length is not None and "Content-Encoding" not in answer.headers:
            return await answer.read()  # no more than that
        pieces, size = [], 0
        async for piece in answer.content.iter_any():
            size += len(piece)
            if size > most:
                raise self._too_large(answer)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self, answer: aiohttp.ClientResponse) -> BadItem:
        answer.close()
        most = self._settings.max_result_bytes
        return BadItem(f"{self._tried}: the answer has more than max_result_bytes, {most:,} bytes")

    async def _refusal(self, answer: aiohttp.ClientResponse) -> Refusal:
        """An answer that is no success, whatever becomes of its body."""
        import aiohttp  # noqa: PLC0415  `open` imported it

        body = b""
        try:
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > _READ_OF_A_REFUSAL:
                    answer.close()
                    break
        except (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError, ValueError):
            answer.close()  # its status says enough
        location = answer.headers.get("Location", "").partition("?")[0]
        return Refusal(
            status=answer.status,
            said=self._quoted(body[:_READ_OF_A_REFUSAL].decode("utf-8", "replace")),
            retry_after=answer.headers.get("Retry-After"),
            location=self._quoted(location),
        )

    def _failed(self, error: Exception, answered: bool) -> RetryItem:
        """The error for a call that got no answer, or only a part of one."""
        import aiohttp  # noqa: PLC0415  `open` imported it

        if isinstance(error, aiohttp.ClientConnectorError):
            cause = error.os_error
            return RetryItem(
                f"{self._tried}: could not connect: {self._quoted(reason_of(cause))}",
                hint=connect_hint(cause),
            )
        if isinstance(error, aiohttp.ClientResponseError):
            said = self._quoted(error.message)
            return RetryItem(
                f"{self._tried}: the answer is not HTTP: {said}",
                hint="check that this is the handler's address, and http:// or https:// in `url`",
            )
        said = self._quoted(str(error)) or type(error).__name__
        if answered:
            return RetryItem(f"{self._tried}: the answer was cut short or damaged: {said}")
        lost = isinstance(error, (aiohttp.ClientConnectionError, OSError))
        return RetryItem(
            f"{self._tried}: the connection was lost before an answer came: {said}",
            hint="look for a crash in the handler's log",
            shared=lost,
        )

    def _quoted(self, text: str) -> str:
        """The beginning of a text from outside, without secrets, in one printable line."""
        for secret in self._secret_texts:
            text = text.replace(secret, "***")
        return in_a_line(text.strip()[:QUOTED_CHARACTERS])


def _secret_texts(settings: HttpHandler) -> list[str]:
    """What no message may show, the longest first: headers' values, each word of them (a token
    without its `Bearer`), and the query of `url`."""
    values = [value.get_secret_value() for value in settings.headers.values()]
    words = [word for value in values for word in value.split()]
    found = {*values, *words, settings.address().query}
    return sorted((one for one in found if len(one) >= _SHORTEST_SECRET), key=len, reverse=True)


def _encoded(value: str) -> str:
    """A header's value in printable ASCII; HTTP drops blanks at the ends."""
    if _PLAIN.fullmatch(value):
        return value
    safe = _PRINTABLE if value == value.strip() else _PRINTABLE.strip()
    return quote(value, safe=safe, errors="surrogatepass")
