"""Posting to `alert_webhook`; what must always hold there is in `settings/secret_post.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fuploader_dagster.errors import FuploaderError, PermanentError, TemporaryError
from fuploader_dagster.settings import secret_post

TIMEOUT_SECONDS = 10.0
_JSON = {"Content-Type": "application/json"}


def post(url: str, message: Mapping[str, Any]) -> None:
    """POST the message as JSON. After a `TemporaryError` or a `PermanentError` it counts as not
    delivered."""
    where = f"cannot post the alert to {secret_post.host_of(url)}"
    try:
        body = json.dumps(message).encode("ascii")
        status = secret_post.post(url, body, _JSON, TIMEOUT_SECONDS)
    except secret_post.NotPosted as error:
        raise _failed(where, str(error)) from None
    if status in secret_post.REDIRECTS:
        raise PermanentError(
            f"{where}: it answered {status}, a redirect, which is not followed",
            hint="set alert_webhook to the address that it leads to",
        )
    if status not in secret_post.DONE:
        raise _failed(where, f"it answered {status}")


def _failed(where: str, why: str) -> FuploaderError:
    return TemporaryError(
        f"{where}: {why}",
        hint="it is retried every minute; if it keeps failing, check alert_webhook and the network",
    )
