"""Posting to an address that is a secret, because it lets anybody post there.

What must always hold: neither errors nor logs contain the address, or the response, which may
repeat it; only the host's name. No redirect is followed: it would give the message to somebody
else. Only the status of the response is read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

REDIRECTS = range(300, 400)
DONE = range(200, 300)


class NotPosted(Exception):
    """No answer came. Says only of which kind the error was."""


def post(url: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> int:
    """POST the body; returns the status of the answer. Raises `NotPosted`."""
    import requests  # noqa: PLC0415  each run imports this module, few post

    try:
        with (
            _unlogged(),
            requests.post(
                url,
                data=body,
                headers=dict(headers),
                timeout=timeout_seconds,
                allow_redirects=False,
                stream=True,
            ) as answer,
        ):
            return answer.status_code
    except (requests.RequestException, ValueError, OSError) as error:
        # The error's text has the address in it, so it must not be chained either.
        raise NotPosted(type(error).__name__) from None


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
