"""The processor kind `http`: a handler that gets each item, or a batch of them, by POST.

What must always hold:

- A call ends within `timeout_seconds`, its answer included, and never holds more of an answer than
  `max_result_bytes`, whatever the other side sends: pieces now and then, a wrong length, or a few
  kilobytes that unpack to gigabytes.
- Nothing passes from one call to the next: no cookies, and no connection on which more came than
  the answer. No redirect is followed, no proxy or login is taken from the environment, and TLS is
  verified.
- Each attempt for an item has the same Idempotency-Key, so a handler can see that it was asked
  before. Attempts are made by the caller, never in here.
- No message shows a header's value, the query of `url`, or anything that commands a terminal. The
  handler's own words are quoted, but for these.

A request: the body is the item's content (`raw`, `json`), a list of contents (`json` with `batch`)
or an object around such a list (`wrap`). JSON is passed on byte by byte. An item that is sent by
itself, in a pipeline without `batch`, has these headers:

    X-Fuploader-Name: 7301.json          its name
    X-Fuploader-cmd: thumb/64            for each message header that the pipeline keeps
    Idempotency-Key: 5f0c9b...-7         for a batch, a digest of the keys

Characters that are not printable ASCII, and `%`, are percent-encoded in the first two. A message
header called `name` is not sent: the item's name is in its place.

What an answer means: `http_answers`. aiohttp is imported when a processor opens.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from urllib.parse import SplitResult, quote, urlsplit

import msgspec
from pydantic import Field, SecretStr, field_validator, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis, trouble
from fuploader_dagster.contracts.processor import Item, Processor, ProcessorSettings, Result
from fuploader_dagster.errors import (
    UNREADABLE_JSON,
    BadItem,
    ConfigError,
    ProcessorUnavailable,
    RetryItem,
)
from fuploader_dagster.processing.http_answers import (
    JSON_TYPE,
    Reading,
    Refusal,
    error_for,
    read_results,
)
from fuploader_dagster.settings.safe_text import in_a_line
from fuploader_dagster.settings.secret import Secret

if TYPE_CHECKING:
    import aiohttp

QUOTED_CHARACTERS = 200
_READ_OF_A_REFUSAL = 16 * 1024
_LONGEST_CONTENT_TYPE = 200
_LARGE_BODY = 512 * 1024
"""aiohttp sends larger ones in pieces if they come as a file, so that others get their turn."""
_LONGEST_EXAMINATION_SECONDS = 10.0
_REFUSED_BY_TLS_SECONDS = 0.5
_TOKEN = "!#$&'*+-.^_`|~"  # noqa: S105 - the name that RFC 9110 has for what a header is called
_HEADER_NAME = re.compile(rf"[{re.escape(_TOKEN)}%0-9A-Za-z]+")
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_SET_HERE = {
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "idempotency-key",
    "transfer-encoding",
}
_PREFIX = "X-Fuploader-"


class HttpHandler(ProcessorSettings):
    """A handler behind HTTP: each item, or a batch of items, is sent to it by POST."""

    INDECISIVE: ClassVar[frozenset[str]] = ProcessorSettings.INDECISIVE | {
        "ca_file",
        "cert_file",
        "key_file",
    }

    url: str
    """Address of the handler, http:// or https://. For a login use `headers`."""
    body: Literal["raw", "json"] = "raw"
    """What is sent. `raw`: the item's content as it is, with the message's content-type if the
    pipeline keeps that header. `json`: the content, which must be JSON, as application/json."""
    wrap: str | None = None
    """With `body: json`, send an object with the list of items in this field, such as
    `{"data_list": [...]}`; without `batch` it is a list of one."""
    answer: str | None = None
    """Path to the results in an answer in JSON, such as `data.results`; `.` is the answer itself.
    With `batch` there must be a list with one element per item. An element that is a list gives
    several results, and null gives none; without `batch` this is true of the value itself. Without
    `answer`, `wrap` and `batch`, the whole answer is one result."""
    headers: dict[str, Secret] = Field(default_factory=dict)
    """Headers of each request. Give secrets as `{env: NAME}`: `{Authorization: {env: TOKEN}}`.
    Their values are not part of what a slot was processed with."""
    ca_file: Path | None = None
    """PEM file of the certificates to trust instead of the system's. With https only."""
    cert_file: Path | None = None
    """PEM file of our certificate, for a handler that asks its clients for one. With https only."""
    key_file: Path | None = None
    """PEM file of the key of `cert_file`, without a password, if the key is not in that file."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # not passed on, because it may quote a login
            raise ValueError(_USABLE) from None
        if "@" in parts.netloc:
            raise ValueError("url must not have a login: set an Authorization header in `headers`")
        if not usable or parts.fragment or not url.isprintable() or " " in url:
            raise ValueError(_USABLE)
        return url

    @field_validator("headers")
    @classmethod
    def _usable_headers(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        kept: dict[str, SecretStr] = {}
        for name, secret in headers.items():
            value = secret.get_secret_value().strip()  # files of secrets end with a line break
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError("a header has a name that HTTP does not allow")
            if name.lower() in _SET_HERE or name.lower().startswith(_PREFIX.lower()):
                raise ValueError(f"the header {name} is set by the pipeline itself")
            if not (value.isascii() and value.replace("\t", " ").isprintable()):
                raise ValueError(f"the value of the header {name} is not printable ASCII")
            kept[name] = SecretStr(value)
        if len({name.lower() for name in kept}) < len(kept):
            raise ValueError("a header is there twice: capital letters make no difference")
        return kept

    @field_validator("answer", "wrap")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value is not None and value != "." and not all(value.split(".")):
            raise ValueError("it must name a field")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> HttpHandler:
        if self.body == "raw" and (self.wrap is not None or self.batch > 1):
            raise ValueError("wrap and batch need body: json")
        for name in ("ca_file", "cert_file", "key_file"):
            if getattr(self, name) is not None and self.address().scheme != "https":
                raise ValueError(f"{name} is set, but url does not begin with https://")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file is set, but not the cert_file that it belongs to")
        return self

    def processor(self) -> HttpProcessor:
        return HttpProcessor(self)

    def describe(self) -> str:
        return in_a_line(self.address()._replace(query="").geturl())

    def address(self) -> SplitResult:
        """The parts of `url`."""
        return urlsplit(self.url)

    def examine(self) -> Iterator[Diagnosis]:
        try:
            _connect(self)
        except (ConfigError, ProcessorUnavailable) as error:
            yield trouble("processor", error)
        else:
            yield Diagnosis("processor", "good", f"{self.describe()} takes connections")

    def tls(self) -> ssl.SSLContext:
        """What to trust, and our certificate. Raises `ConfigError`."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
            raise ConfigError(
                f"could not read ca_file {self.ca_file} for {self.describe()}: {error}",
                hint="it must be a PEM file with at least one certificate",
            ) from error
        if self.cert_file is not None:
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password="")
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"could not read cert_file {self.cert_file} and its key "
                    f"{self.key_file or self.cert_file} for {self.describe()}: {error}",
                    hint="they must be PEM files, and the key without a password",
                ) from error
        return context


_USABLE = "url must look like https://host:8001/path"


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
        accepted = {"Accept": JSON_TYPE if self._reading.as_json else "*/*"}
        if settings.body == "json":
            accepted["Content-Type"] = JSON_TYPE
        given = {name.lower() for name in headers}
        for name, value in {"User-Agent": "fuploader-dagster", **accepted}.items():
            if name.lower() not in given:
                headers[name] = value
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.concurrency, ssl=settings.tls() if https else True
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
                answers.append(BadItem(f"its content is not JSON, as body: json needs it: {error}"))
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
            if name.lower() != "name":
                headers[_PREFIX + quote(name, safe=_TOKEN)] = _encoded(value)
        headers[f"{_PREFIX}Name"] = _encoded(item.name)
        if self._settings.body == "raw" and not _has(self._settings.headers, "content-type"):
            kept = next((v for n, v in item.headers.items() if n.lower() == "content-type"), "")
            headers["Content-Type"] = _content_type(kept) or "application/octet-stream"
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
                    return content, _content_type(answer.headers.get("Content-Type", ""))
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
        too_large = BadItem(
            f"{self._tried}: the answer has more than max_result_bytes, {most:,} bytes"
        )
        if (answer.content_length or 0) > most:
            answer.close()
            raise too_large
        pieces, size = [], 0
        async for piece in answer.content.iter_any():
            size += len(piece)
            if size > most:
                answer.close()
                raise too_large
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

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
                f"{self._tried}: could not connect: {self._quoted(_reason(cause))}",
                hint=_connect_hint(cause),
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
    words = [word for value in values for word in value.split() if len(word) >= 8]
    found = {*values, *words, settings.address().query} - {""}
    return sorted(found, key=len, reverse=True)


def _has(headers: Mapping[str, object], name: str) -> bool:
    return any(one.lower() == name for one in headers)


def _encoded(value: str) -> str:
    """A header's value in printable ASCII; HTTP drops blanks at the ends."""
    safe = _PRINTABLE if value == value.strip() else _PRINTABLE.strip()
    return quote(value, safe=safe, errors="surrogatepass")


def _content_type(value: str) -> str:
    """A content type that came from outside, if it can be one."""
    value = value.strip()
    usable = "/" in value and value.isascii() and value.isprintable()
    return value if usable and len(value) <= _LONGEST_CONTENT_TYPE else ""


def _reason(error: BaseException) -> str:
    """What the system says about a connection, without our part of the sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message or error}"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__


def _connect_hint(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "set ca_file to the certificate that signed the handler's"
    if isinstance(error, ssl.SSLError):
        return "check whether `url` has to begin with http:// or https://"
    return "check that the handler runs, and the host and port in `url`"


def _connect(settings: HttpHandler) -> None:
    """Connect as a call would, and send nothing. Raises `ConfigError` or `ProcessorUnavailable`."""
    parts = settings.address()
    https = parts.scheme == "https"
    context = settings.tls() if https else None
    where = (parts.hostname or "", parts.port or (443 if https else 80))
    seconds = min(settings.timeout_seconds, _LONGEST_EXAMINATION_SECONDS)
    tried = f"could not connect to {settings.describe()}"
    try:
        with socket.create_connection(where, timeout=seconds) as connection:
            if context is not None:
                with context.wrap_socket(connection, server_hostname=where[0]) as wrapped:
                    _wait_for_refusal(wrapped)
    except _Refused as error:
        named = "cert_file is set, but does the handler trust it?"
        raise ConfigError(
            f"{tried}: it accepted no request: {in_a_line(str(error))}",
            hint=named if settings.cert_file else "if it asks for a certificate, set cert_file",
        ) from error
    except ssl.SSLError as error:
        raise ConfigError(
            f"{tried}: {in_a_line(_reason(error))}", hint=_connect_hint(error)
        ) from error
    except (OSError, UnicodeError) as error:
        raise ProcessorUnavailable(
            f"{tried}: {in_a_line(_reason(error))}", hint=_connect_hint(error)
        ) from error


class _Refused(Exception):
    """The other side ended a connection after its handshake."""


def _wait_for_refusal(connection: ssl.SSLSocket) -> None:
    """Raise `_Refused` if the other side does not like our certificate, or misses one.

    It says so, or just ends the connection, after the handshake is done on our side.
    """
    connection.settimeout(_REFUSED_BY_TLS_SECONDS)
    try:
        ended = not connection.recv(1)
    except TimeoutError:
        return  # it waits for a request
    except (ssl.SSLError, ConnectionError) as error:
        raise _Refused(_reason(error)) from error
    if ended:
        raise _Refused("it ended the connection")
