"""The HTTP session of the client libraries that use `requests` (COS and OSS).

What must always hold:

- No redirect is followed: the next host would get the session token, and with a 307 the archive.
- The settings decide which certificates are trusted. `requests` by itself prefers
  REQUESTS_CA_BUNDLE, and would replace our signature by the login that ~/.netrc has for a host.
- Answers end in time (`connections`).
"""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager

from fuploader_dagster.resources.object_stores.connections import POOLS


class StoreSession(requests.Session):
    """The session of one store; as thread-safe as `requests`."""

    def __init__(self, verify: bool | str, pool_size: int) -> None:
        super().__init__()
        self._trusted = verify
        self.auth = lambda request: request  # the client library has signed it
        adapter = _Adapter(pool_connections=pool_size, pool_maxsize=pool_size)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["allow_redirects"] = False
        return super().request(method, url, *args, **kwargs)

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        merged = super().merge_environment_settings(url, proxies, stream, verify, cert)
        if self._trusted is not True:  # otherwise the environment may name certificates
            merged["verify"] = self._trusted
        return merged


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = POOLS
        return manager
