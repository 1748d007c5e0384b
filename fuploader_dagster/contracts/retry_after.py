"""What a server's `Retry-After` asks for: a number of seconds, or a date."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

LONGEST_PAUSE_SECONDS = 86_400.0


def pause_seconds(retry_after: str | None, now_seconds: float) -> float | None:
    """The pause, from 0 seconds to a day; None if there is none, or it makes no sense."""
    if not retry_after:
        return None
    stated = retry_after.strip()
    try:
        if stated.isascii() and stated.isdecimal():
            seconds = float(stated)
        else:
            seconds = parsedate_to_datetime(stated).timestamp() - now_seconds
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), LONGEST_PAUSE_SECONDS)
