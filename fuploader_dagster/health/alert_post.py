"""Posting to `alert_webhook`.

What must always hold: the address is a secret, as it lets anybody post, and the answer may repeat
it. So neither is in any error or log, only the host's name; no redirect is followed, which would
hand the message to somebody else; and nothing of the answer is read but its status.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from fuploader_dagster.errors import FuploaderError, PermanentError, TemporaryError

TIMEOUT_SECONDS = 10.0
_REDIRECTS = range(300, 400)
_DONE = range(200, 300)


def post(url: str, message: Mapping[str, Any]) -> None:
    """POST the message as JSON. Raises `TemporaryError` or `PermanentError`; either way it was not
    delivered, as far as one knows."""
    import requests  # noqa: PLC0415  each run loads what imports this, hardly any posts

    where = f"the alert could not be posted to {host_of(url)}"
    try:
        with (
            _unlogged(),
            requests.post(
                url,
                data=json.dumps(message).encode("ascii"),
                headers={"Content-Type": "application/json"},
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,
                stream=True,
            ) as answer,
        ):
            status = answer.status_code
    except (requests.RequestException, ValueError, OSError) as error:
        # Its text has the address in it, so there must be no chain to it either.
        raise _failed(where, type(error).__name__) from None
    if status in _REDIRECTS:
        raise PermanentError(
            f"{where}: it answered {status}, a redirect, which is not followed",
            hint="give alert_webhook the address that it leads to",
        )
    if status not in _DONE:
        raise _failed(where, f"it answered {status}")


@contextmanager
def _unlogged() -> Iterator[None]:
    """urllib3 logs the path of each request at DEBUG: not those of this thread."""
    thread, logger = threading.get_ident(), logging.getLogger("urllib3.connectionpool")

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)


def host_of(url: str) -> str:
    """What may be shown of an address."""
    try:
        return urlsplit(url).hostname or "a host without a name"
    except ValueError:
        return "a host without a name"


def _failed(where: str, why: str) -> FuploaderError:
    return TemporaryError(
        f"{where}: {why}",
        hint="it is tried again once a minute; if it stays, check alert_webhook and the network",
    )
