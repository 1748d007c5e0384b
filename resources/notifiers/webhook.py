"""Notices posted to a webhook, as signed JSON.

    POST PATH
    Content-Type: application/json
    X-Fuploader-Id: ID                       the same at each repetition
    X-Fuploader-Timestamp: 1795218301        seconds since 1970, when it was sent
    X-Fuploader-Signature: sha256=HEX        HMAC-SHA256 of "TIMESTAMP.BODY", by the secret

What must always hold: an answer of 200 to 299 means that the notice was taken. No redirect is
followed. The address is a secret, as that of alerts is (`settings/secret_post.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from typing import Annotated, ClassVar
from urllib.parse import quote

import msgspec
from pydantic import Field, field_validator

from fuploader_dagster.contracts.notifier import Notice, Notifier, NotifierSettings
from fuploader_dagster.errors import NotifierRefused, NotifierUnavailable
from fuploader_dagster.settings import secret_post
from fuploader_dagster.settings.secret import Secret, place_of_unset

_WEB_ADDRESS = re.compile(r"https?://[^/?#\s]+[^\s]*\Z")
_PASSING = {408, 425, 429}


class WebhookNotices(NotifierSettings):
    """A webhook that gets a POST of JSON for each notice."""

    url: Secret
    """An http(s) address. Errors name only its host."""
    secret: Secret
    """What notices are signed with; whoever gets them computes the same signature."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Longest time to wait for a connection, and for the answer."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: Secret) -> Secret:
        if not place_of_unset(url) and not _WEB_ADDRESS.match(url.get_secret_value()):
            raise ValueError("it must be an address that begins with http:// or https://")
        return url

    @field_validator("secret")
    @classmethod
    def _is_something(cls, secret: Secret) -> Secret:
        if not place_of_unset(secret) and len(secret.get_secret_value()) < 8:
            raise ValueError("it must have at least 8 characters")
        return secret

    def notifier(self) -> WebhookNotifier:
        return WebhookNotifier(self)

    def describe(self) -> str:
        if unset := place_of_unset(self.url):
            return f"a webhook at {unset}"
        url = self.url.get_secret_value()
        digest = hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()[:6]
        return f"a webhook ({digest}) at {secret_post.host_of(url)}"


class WebhookNotifier(Notifier):
    """One request for each notice."""

    most_at_once: ClassVar[int] = 1

    def __init__(self, settings: WebhookNotices) -> None:
        self._settings = settings

    def send(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self._post(notice)

    def close(self) -> None:
        """Nothing is open."""

    def _post(self, notice: Notice) -> None:
        settings = self._settings
        body = msgspec.json.encode(notice.content)
        moment = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "X-Fuploader-Id": quote(notice.id),
            "X-Fuploader-Timestamp": moment,
            "X-Fuploader-Signature": signature(settings.secret.get_secret_value(), moment, body),
        }
        where = f"cannot post a notice to {settings.describe()}"
        url = settings.url.get_secret_value()
        try:
            status = secret_post.post(url, body, headers, settings.timeout_seconds)
        except secret_post.NotPosted as error:
            raise NotifierUnavailable(
                f"{where}: {error}", hint="is it running, and can this machine reach it?"
            ) from None
        if status in secret_post.DONE:
            return
        if status >= 500 or status in _PASSING:
            raise NotifierUnavailable(f"{where}: it answered {status}", hint="see its log")
        followed = ", a redirect, which is not followed" * (status in secret_post.REDIRECTS)
        raise NotifierRefused(
            f"{where}: it answered {status}{followed}", hint="check url and secret of notify"
        )


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What the header says, for whoever checks it."""
    signed = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={signed.hexdigest()}"
