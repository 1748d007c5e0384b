"""Counts in sentences: they agree with their noun, and with the verb that follows it."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """`1 message`, `2,000 messages`; `many` where an `s` does not do: `1 entry`, `2 entries`, or
    `1 message waits`, `2 messages wait`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
