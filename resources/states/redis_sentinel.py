"""Addresses of Sentinel: which server is the master is asked at each connection.

Format: `redis+sentinel://user:password@host:26379,host:26379/NAME/0`, where NAME is what the
Sentinels call the master, and the last part is the database. `rediss+sentinel://` for TLS, to the
servers and to the Sentinels. User and password are those of the servers; `?sentinel_username=` and
`?sentinel_password=` those of the Sentinels. Other options as in the urls of redis-py.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import redis
from redis.connection import parse_url
from redis.sentinel import Sentinel

_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_PORT = 26379
_FORM = "url must look like redis+sentinel://user:password@host:26379,host:26379/NAME/0"


class Watched(NamedTuple):
    """A master that Sentinels watch."""

    sentinels: list[tuple[str, int]]
    name: str
    options: dict[str, Any]
    """For connections to the servers."""
    sentinel_options: dict[str, Any]
    """For connections to the Sentinels."""


def names_sentinels(url: str) -> bool:
    return url.partition("://")[0] in _SCHEMES


def watched(url: str) -> Watched:
    """What the url names. Raises `ValueError`, which does not quote it."""
    parts = urlsplit(url)
    login, _, places = parts.netloc.rpartition("@")
    name, _, database = parts.path.removeprefix("/").partition("/")
    try:
        sentinels = [_place(one) for one in places.split(",")]
        query = [pair for pair in parse_qsl(parts.query) if not pair[0].startswith("sentinel_")]
        own = parse_qs(parts.query)
        at = f"{login}@host" if login else "host"
        scheme = _SCHEMES[parts.scheme]
        plain = f"{scheme}://{at}/{database or 0}?{urlencode(query)}"
        options: dict[str, Any] = dict(parse_url(plain))  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError):
        raise ValueError(_FORM) from None
    if not name:
        raise ValueError(_FORM)
    for given in ("host", "port", "connection_class"):
        options.pop(given, None)
    tls = {key: value for key, value in options.items() if key.startswith("ssl")}
    if scheme == "rediss":
        options["ssl"] = tls["ssl"] = True
    logins = {
        key.removeprefix("sentinel_"): own[key][0]
        for key in ("sentinel_username", "sentinel_password")
        if key in own
    }
    return Watched(sentinels, name, options, {**tls, **logins})


def master(url: str, **options: Any) -> redis.Redis:
    """A client of whichever server is the master when it connects."""
    found = watched(url)
    shared = {key: value for key, value in options.items() if key not in _NOT_FOR_SENTINELS}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        found.sentinels,
        sentinel_kwargs={**shared, "decode_responses": True, **found.sentinel_options},
    )
    client: redis.Redis = sentinel.master_for(found.name, **{**options, **found.options})  # type: ignore[no-untyped-call]
    return client


_NOT_FOR_SENTINELS = ("client_name", "command_packer", "decode_responses", "encoding_errors")


def _place(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or _PORT
