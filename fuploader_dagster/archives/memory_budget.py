"""How much memory reading one archive may take, whatever the archive claims.

What must always hold: before a piece is decoded, or a list of members grows, it is compared with
the budget. So an archive of some kilobytes that unpacks to gigabytes, by accident or by intent,
gives an error instead of a machine without memory. Payloads that are written somewhere pass through
in pieces, and do not count.
"""

from __future__ import annotations

from fuploader_dagster.errors import TooLarge

DEFAULT_MEMORY_BYTES = 2**30
_MEMBER_BYTES = 300
"""What a listed member takes in Python, without its name."""


class Budget:
    """The memory that lists of members may take."""

    def __init__(self, address: str, memory_bytes: int) -> None:
        self._address, self._most, self._held = address, memory_bytes, 0
        self._members = 0

    def hold(self, members: int, name_characters: int) -> None:
        """Count members that are kept. Raises `TooLarge` if there are too many."""
        self._members += members
        self._held += members * _MEMBER_BYTES + name_characters
        if self._held > self._most:
            raise too_large(
                f"a list of the members of {self._address} ({self._members:,} so far)",
                self._held,
                self._most,
            )


def too_large(what: str, needed: int, memory_bytes: int) -> TooLarge:
    """The error for a piece that needs more memory than allowed."""
    return TooLarge(
        f"{what} needs {needed:,} bytes of memory; reading an archive may take {memory_bytes:,}",
        hint="if you trust the archive, raise the limit: ls, cat, verify and restore take "
        "`--max-memory BYTES`",
    )
