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

The calls: `http_calls`. What an answer means: `http_answers`. aiohttp is imported when a processor
opens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis, trouble
from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.errors import ConfigError, ProcessorUnavailable
from fuploader_dagster.processing.http_calls import ITEM_HEADER, HttpProcessor
from fuploader_dagster.processing.http_connection import try_to_connect
from fuploader_dagster.settings.http_headers import sendable
from fuploader_dagster.settings.safe_text import in_a_line
from fuploader_dagster.settings.secret import Secret

_USABLE = "url must look like https://host:8001/path"
_SET_HERE = {
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "idempotency-key",
    "transfer-encoding",
}


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
            ours = name.lower() in _SET_HERE or name.lower().startswith(ITEM_HEADER.lower())
            kept[name] = sendable(name, secret, set_by="the pipeline" if ours else "")
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
            try_to_connect(self)
        except (ConfigError, ProcessorUnavailable) as error:
            yield trouble("processor", error)
        else:
            yield Diagnosis("processor", "good", f"{self.describe()} takes connections")
