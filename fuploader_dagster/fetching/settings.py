"""The processor kind `fetch`: the addresses in an item become files.

What the settings mean together: docs/downloads.md. aiohttp is imported when a processor opens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.processor import Processor, ProcessorSettings
from fuploader_dagster.contracts.settings import Count, Seconds
from fuploader_dagster.fetching.addresses import template_fields
from fuploader_dagster.fetching.places import Places, host_problem
from fuploader_dagster.fetching.processor import FetchProcessor
from fuploader_dagster.settings.http_headers import sendable
from fuploader_dagster.settings.secret import Secret, place_of_unset

_SET_HERE = {
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "if-range",
    "range",
    "transfer-encoding",
}


class Fetch(ProcessorSettings):
    """The addresses that an item names are fetched; each file is a result."""

    INDECISIVE: ClassVar[frozenset[str]] = ProcessorSettings.INDECISIVE | {
        "per_host",
        "per_host_pause_seconds",
        "stall_seconds",
        "allow_hosts",
        "deny_hosts",
        "proxy",
        "ca_file",
        "min_success",
    }

    urls: str | None = None
    """Field of the item, which is JSON, with the list of addresses: addresses, or objects with
    `url` and perhaps a name as `fn` or `name`. `job.files` leads to a field inside a field."""
    url: str | None = None
    """Or one address, made from the item's fields: `https://host/{id}.jpg`. Without `urls` and
    `url` the item is text with an address a line, after it perhaps a space and a name."""
    min_success: Literal["all"] | Annotated[float, Field(ge=0)] = "all"
    """How many addresses of an item have to be fetched: `all`, a number from 1, or a share of them
    below 1. With fewer the item fails; with enough of them the others are reported."""
    concurrency: Count = 64
    """Number of downloads at once, over all items of a run, and of items in work at once."""
    per_host: Count = 16
    """Number of downloads and of connections at once for one host."""
    per_host_pause_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Least time between the beginnings of two downloads from one host."""
    timeout_seconds: Seconds = 3600.0
    """Longest time for one address, with its retries and the pauses between them."""
    stall_seconds: Seconds = 30.0
    """Longest time to connect, to the end of the headers, and with less than 1 KiB of the file a
    second; then the connection is given up and the download goes on where it was."""
    max_redirects: Annotated[int, Field(ge=0)] = 10
    """Redirects that are followed for one address. Each leads only where an address may lead."""
    max_bytes: Count = 1024 * 1024 * 1024
    """A file that is larger is not kept, whatever the server said about its length."""
    max_files: Count = 10_000
    """An item with more addresses becomes a dead letter."""
    max_task_bytes: Count | None = None
    """Bytes of all files of one item together; what does not fit is reported."""
    content_types: list[str] = Field(default_factory=list)
    """Content types to accept, such as `image/*`. Anything else is reported. Without any: all."""
    decode: bool = False
    """Unpack files that a server sends with Content-Encoding gzip or deflate. Without it servers
    are asked not to, and what comes is kept as it is. A packed transfer cannot be resumed."""
    allow_hosts: list[str] = Field(default_factory=list)
    """The only hosts to fetch from, as names with `*`, IP addresses or networks. One that is not
    public is fetched from only if an entry without `*` names it. Without any: all public hosts."""
    deny_hosts: list[str] = Field(default_factory=list)
    """Hosts never to fetch from, in the same forms. An IP address or network is compared with what
    names lead to as well."""
    headers: dict[str, dict[str, Secret]] = Field(default_factory=dict)
    """Headers by host, such as logins: `{files.example.com: {Authorization: {env: TOKEN}}}`. A host
    on another port than 80 or 443 is `host:port`. They are sent to that host only, whatever
    redirects lead elsewhere, and never over http after a redirect from https."""
    proxy: Secret | None = None
    """Address of an HTTP proxy, `http://user:password@host:port`, given as `{env: NAME}`. What a
    name leads to is decided by the proxy then, and not checked here."""
    ca_file: Path | None = None
    """PEM file of the certificates to trust instead of the system's."""

    @field_validator("allow_hosts", "deny_hosts")
    @classmethod
    def _usable_hosts(cls, hosts: list[str]) -> list[str]:
        for entry in hosts:
            if problem := host_problem(entry):
                raise ValueError(f"an entry is unusable: {problem}")
        return hosts

    @field_validator("headers")
    @classmethod
    def _usable_headers(
        cls, headers: dict[str, dict[str, SecretStr]]
    ) -> dict[str, dict[str, SecretStr]]:
        kept: dict[str, dict[str, SecretStr]] = {}
        for host, named in headers.items():
            if not host or "/" in host or "@" in host or "*" in host:
                raise ValueError("the key of headers must be a host or host:port")
            of_host = kept.setdefault(host.lower(), {})
            for name, secret in named.items():
                set_by = "the download" if name.lower() in _SET_HERE else ""
                of_host[name] = sendable(name, secret, set_by=set_by)
        return kept

    @field_validator("proxy")
    @classmethod
    def _usable_proxy(cls, proxy: SecretStr | None) -> SecretStr | None:
        if proxy is None or place_of_unset(proxy):
            return proxy
        try:
            parts = urlsplit(proxy.get_secret_value().strip())
            usable = parts.scheme == "http" and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("proxy must look like http://host:3128") from None
        return SecretStr(proxy.get_secret_value().strip())

    @field_validator("min_success")
    @classmethod
    def _usable_min_success(cls, value: str | float) -> str | float:
        if isinstance(value, float) and value >= 1 and value != int(value):
            raise ValueError("it must be all, a whole number from 1, or a share below 1")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Fetch:
        if self.urls is not None and self.url is not None:
            raise ValueError("urls and url exclude each other")
        if self.urls is not None and not all(self.urls.split(".")):
            raise ValueError("urls must name a field")
        if self.url is not None:
            fields = template_fields(self.url)
            if not fields or not all(all(field.split(".")) for field in fields):
                raise ValueError("url must have fields of the item: https://host/{id}.jpg")
            if not self.url.startswith(("http://", "https://")):
                raise ValueError("url must begin with http:// or https://")
        if self.batch != 1:
            raise ValueError("batch must be 1: each item is a task of its own")
        return self

    def processor(self) -> Processor:
        return FetchProcessor(self)

    def places(self) -> Places:
        """Where it may go."""
        return Places(self.allow_hosts, self.deny_hosts)

    def needed(self, addresses: int) -> int:
        """How many of so many addresses have to be fetched."""
        if self.min_success == "all":
            return addresses
        if self.min_success < 1:
            return min(addresses, -int(-self.min_success * addresses // 1))
        return min(addresses, int(self.min_success))

    def describe(self) -> str:
        if self.url is not None:
            return f"downloads of {self.url.partition('?')[0]}"
        return f"downloads of the addresses in {self.urls or 'lines'}"

    def examine(self) -> Iterator[Diagnosis]:
        yield Diagnosis("processor", "good", self.describe())
