"""Temporary COS credentials of a machine's role (CAM role of a CVM).

The SDK does not fetch them itself: it takes an object with `secret_id`, `secret_key` and `token`,
which it reads for each request. The credentials that the machine's metadata service gives out
expire; new ones are fetched a few minutes earlier.
"""

from __future__ import annotations

import threading
import time

import requests

from fuploader_dagster.errors import StoreRefused, StoreUnavailable
from fuploader_dagster.settings.secret import without_logins

EARLY_SECONDS = 300.0
TIMEOUT_SECONDS = 5.0


class RoleCredentials:
    """The SDK's `CredentialInstance`. Thread-safe; its repr shows no secret."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._shown = without_logins(url.partition("?")[0])
        self._lock = threading.Lock()
        self._values: dict[str, str] = {}
        self._expires_at = 0.0

    @property
    def secret_id(self) -> str:
        return self._value("TmpSecretId")

    @property
    def secret_key(self) -> str:
        return self._value("TmpSecretKey")

    @property
    def token(self) -> str:
        return self._value("Token")

    def _value(self, name: str) -> str:
        with self._lock:
            if time.time() > self._expires_at - EARLY_SECONDS:
                self._fetch()
            return self._values[name]

    def _fetch(self) -> None:
        try:
            answer = requests.get(self._url, timeout=TIMEOUT_SECONDS, allow_redirects=False)
            answer.raise_for_status()
            stated = answer.json()
            self._values = {
                name: str(stated[name]) for name in ("TmpSecretId", "TmpSecretKey", "Token")
            }
            self._expires_at = float(stated["ExpiredTime"])
        except (requests.ConnectionError, requests.Timeout) as error:
            raise StoreUnavailable(
                f"the metadata service at {self._shown} does not answer: {type(error).__name__}",
                hint="instance_role_url works only on a machine of the provider",
            ) from error
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise StoreRefused(
                f"{self._shown} gives no credentials: {type(error).__name__}",
                hint="does this machine have a role of this name?",
            ) from error
