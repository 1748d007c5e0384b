"""Why an address could not be fetched.

What must always hold: no reason contains a login, the query of an address (it may be a signature)
or anything that commands a terminal.
"""

from __future__ import annotations


class NotFetched(Exception):
    """An attempt for one address failed. `reason` is for people."""

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        """What the server answered, if it did."""


class Refused(NotFetched):
    """Another attempt gives the same: the server says no, or our own settings do."""


class Passing(NotFetched):
    """Another attempt may succeed.

    `retry_after_seconds` is the pause that the server asked for, if it did. `unreachable`: nobody
    answered.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        retry_after_seconds: float | None = None,
        unreachable: bool = False,
    ) -> None:
        super().__init__(reason, status=status)
        self.retry_after_seconds = retry_after_seconds
        self.unreachable = unreachable
