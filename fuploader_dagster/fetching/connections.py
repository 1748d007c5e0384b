"""Connections for downloads: only to IP addresses that were checked.

What must always hold:

- The IP address that was checked is the one that is connected to: names are resolved here, what
  `places` refuses is left out, and the socket for each address is made only after another look at
  it. Nothing resolves the name a second time.
- Nothing passes from one download to another: no cookies, and no proxy or login from the
  environment. TLS is verified.
- Headers that the settings have for a host go to that host alone, and not over http once an
  address came from https.

With a proxy, names are resolved by it. Then only addresses as they are written are checked, and the
proxy has to refuse what names must not lead to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.fetching.failures import Refused
from fuploader_dagster.fetching.places import Places, kind_of

if TYPE_CHECKING:
    from fuploader_dagster.fetching.settings import Fetch

USER_AGENT = "fuploader-dagster"
_READ_BYTES = 64 * 1024
"""aiohttp stops reading at twice that: with 100 downloads a few megabytes are in memory."""
_DNS_SECONDS = 10
_RESOLVING = 32
"""Names that are resolved at once."""


class ThreadResolver(AbstractResolver):
    """Asks the system, in threads of its own: names that resolve slowly delay only each other, and
    many of them at once are asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_RESOLVING, thread_name_prefix="resolve")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._pool, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
        )
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=flags,
            )
            for kind, _, protocol, _, address in found
            if len(address) == 2 or not address[3]  # of IPv6, those that need no interface
        ]

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class CheckedResolver(AbstractResolver):
    """Resolves names and gives only addresses that may be connected to."""

    def __init__(self, places: Places, resolver: AbstractResolver, proxy_host: str = "") -> None:
        self._places = places
        self._resolver = resolver
        self._proxy_host = proxy_host
        self._admitted: set[str] = set()
        """Addresses that are not public, and that a name in `allow_hosts` led to."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        kept: list[ResolveResult] = []
        refusal: Refused | None = None
        for one in found:
            try:
                if host != self._proxy_host:
                    self._places.check_ip(host, one["host"])
                kept.append(one)
                self._admitted.add(one["host"])
            except Refused as error:
                refusal = error
        if not kept and refusal is not None:
            raise refusal
        if not kept:
            raise OSError(None, "the name has no address that can be connected to")
        return kept

    def socket_for(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket to connect to what `getaddrinfo` gave. Raises `Refused`."""
        family, kind, protocol, _, where = address
        text = where[0].partition("%")[0]
        ip = ipaddress.ip_address(text)
        if kind_of(ip) and where[0] not in self._admitted and not self._places.is_named(ip):
            raise Refused(f"{text} is a {kind_of(ip)} address; allow_hosts does not name it")
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        await self._resolver.close()


class Connections:
    """A session, and what is sent to which host. Made in an event loop."""

    def __init__(self, settings: Fetch, resolver: AbstractResolver | None = None) -> None:
        self.places = settings.places()
        self._headers = settings.headers
        self._proxy = URL(settings.proxy.get_secret_value()) if settings.proxy else None
        encodings = "gzip, deflate" if settings.decode else "identity"
        proxy_host = (self._proxy.raw_host or "") if self._proxy else ""
        checked = CheckedResolver(self.places, resolver or ThreadResolver(), proxy_host)
        if proxy_host:
            checked._admitted.add(proxy_host)  # it may be an IP address
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.concurrency,
                limit_per_host=0 if self._proxy else settings.per_host,
                resolver=checked,
                socket_factory=checked.socket_for,
                ssl=_tls_context(settings),
                ttl_dns_cache=_DNS_SECONDS,
            ),
            headers={"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": encodings},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=settings.stall_seconds,
                sock_read=settings.stall_seconds,
            ),
        )

    def get(self, url: URL, headers: Mapping[str, str], *, with_login: bool) -> Any:
        """Ask for an address that `places.checked` returned; follows no redirect."""
        own = self._own_headers(url) if with_login else {}
        if url.raw_user is not None:  # the task's own login
            own = {name: value for name, value in own.items() if name.lower() != "authorization"}
        return self._session.get(
            url,
            headers={**own, **headers},
            allow_redirects=False,
            proxy=self._proxy,
        )

    async def close(self) -> None:
        await self._session.close()

    def _own_headers(self, url: URL) -> dict[str, str]:
        host = (url.raw_host or "").lower()
        usual = url.port in (80, 443)
        named = self._headers.get(host if usual else f"{host}:{url.port}", {})
        return {name: value.get_secret_value() for name, value in named.items()}


def _tls_context(settings: Fetch) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        raise ConfigError(
            f"could not read ca_file {settings.ca_file}: {error}",
            hint="it must be a PEM file with at least one certificate",
        ) from error
