"""What is looked for: a file name or message id, or a pattern of names.

What must always hold: a name finds everything that can have been stored for its message: the file,
its numbered names (`a~2.json`, another message of that name), and the results that are called like
it. A message id finds what keeps it: a dead letter, or a file with the header `message_id`.
"""

from __future__ import annotations

import re

import msgspec

from fuploader_dagster.catalog.name_lists import NamePattern
from fuploader_dagster.disk.header_text import folded, from_text
from fuploader_dagster.slots.numbered_names import family, is_numbered
from fuploader_dagster.slots.processed import RESULTS_PREFIX

_WILD = re.compile(r"[*?[]")
_ID_HEADER = folded("message_id")


class Wanted:
    """One question."""

    def __init__(self, text: str, *, patterns: bool = False) -> None:
        """`patterns`: a text with `*`, `?` or `[` is a pattern too. Raises `ConfigError` if it is
        too long for one."""
        self.text = text
        self.pattern = NamePattern(text) if patterns and _WILD.search(text) else None
        self.result = f"{RESULTS_PREFIX}{text}"
        """What a result is called that has the name of its item."""
        self._parts = _parts(text)

    def is_in(self, content: bytes) -> bool:
        """False if nothing wanted is in an index, or in a dead letter's line, whatever it means."""
        return self.pattern is not None or any(part in content for part in self._parts)

    def fits(self, name: str) -> bool:
        """Whether a file of this name is wanted."""
        if self.pattern is not None and self.pattern.fits(name):
            return True
        return any(
            name == wanted or is_numbered(name, wanted) for wanted in (self.text, self.result)
        )

    def fits_headers(self, headers: str) -> bool:
        """Whether the headers that are kept with a file have this message id."""
        return any(
            value == self.text and folded(name) == _ID_HEADER
            for name, value in (from_text(headers) if headers else {}).items()
        )


def _parts(text: str) -> list[bytes]:
    """Bytes of which each file or letter that is wanted has some; none if there can be none."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no name on a disk and no message id is like that
        return []
    if not text:
        return []
    as_json = msgspec.json.encode(text.encode("utf-8", "replace").decode())[1:-1]
    return [family(raw), as_json]
