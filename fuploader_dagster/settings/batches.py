"""Settings that follow from how many messages the workers have in hand, unless they are set."""

from __future__ import annotations

from typing import Any

DEFAULT_PREFETCH = 2000
_WINDOW_OF_SINGLES = 4
"""Times what is in hand: of slots of one message each, the window keeps a file per message."""


def fitted_to_prefetch(values: Any) -> Any:
    """The settings with a batch of at most half of what the queue hands out; where each message is
    a slot, with a dedup window that is no larger than it needs to be."""
    if not isinstance(values, dict):
        return values
    prefetch = str(values.get("prefetch_count", DEFAULT_PREFETCH))
    workers = str(values.get("process_count", 1))
    fitted = dict(values)
    if prefetch.isdecimal():
        fitted.setdefault("commit_messages", max(1, min(500, int(prefetch) // 2)))
        if values.get("seal_each") == "message" and workers.isdecimal():
            in_hand = int(workers) * int(prefetch)
            fitted.setdefault("dedup_window_messages", _WINDOW_OF_SINGLES * in_hand)
    return fitted
