"""Posting to `alert_webhook`.

What must always hold: the address is a secret, because it lets anybody post, and the response may
repeat it. So errors and logs contain neither, only the host's name. No redirect is followed: it
would give the message to somebody else. Only the status of the response is read.
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
    """POST the message as JSON. After a `TemporaryError` or a `PermanentError` it counts as not
    delivered."""
    import requests  # noqa: PLC0415  each run imports this module, few post

    where = f"cannot post the alert to {host_of(url)}"
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
        # The error's text has the address in it, so it must not be chained either.
        raise _failed(where, type(error).__name__) from None
    if status in _REDIRECTS:
        raise PermanentError(
            f"{where}: it answered {status}, a redirect, which is not followed",
            hint="set alert_webhook to the address that it leads to",
        )
    if status not in _DONE:
        raise _failed(where, f"it answered {status}")


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the path out of the log: urllib3 logs that of each request at DEBUG."""
    thread, logger = threading.get_ident(), logging.getLogger("urllib3.connectionpool")

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)


def host_of(url: str) -> str:
    """The part of an address that may be shown."""
    try:
        return urlsplit(url).hostname or "a host without a name"
    except ValueError:
        return "a host without a name"


def _failed(where: str, why: str) -> FuploaderError:
    return TemporaryError(
        f"{where}: {why}",
        hint="it is retried every minute; if it keeps failing, check alert_webhook and the network",
    )
