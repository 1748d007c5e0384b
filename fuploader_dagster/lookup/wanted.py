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
from fuploader_dagster.slots.index import has_record_of
from fuploader_dagster.slots.numbered_names import family, is_numbered_member
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
        raw = _encoded(text)
        self._names = [raw, RESULTS_PREFIX.encode() + raw] if raw else []
        self._quoted = b'"%b"' % _in_json(raw)
        self._gist = [family(raw), self._quoted] if raw else []
        self._numbered = [re.compile(one) for one in _beginnings_of_numbered(raw)]

    def may_be_in_index(self, content: bytes) -> bool:
        """False if nothing wanted is in this index; to read its records takes far longer."""
        if self.pattern is not None:
            return True
        return self.may_be_in(content) and (
            self._quoted in content
            or any(name in content and has_record_of(content, name) for name in self._names)
            or any(one.search(content) for one in self._numbered)
        )

    def may_be_in(self, content: bytes) -> bool:
        """False if nothing wanted is in this, an index or the line of a dead letter without its
        body."""
        return self.pattern is not None or any(one in content for one in self._gist)

    def fits(self, name: str) -> bool:
        """Whether a file of this name is wanted."""
        if self.pattern is not None and self.pattern.fits(name):
            return True
        return any(
            name == wanted or is_numbered_member(name, wanted)
            for wanted in (self.text, self.result)
        )

    def fits_headers(self, headers: str) -> bool:
        """Whether the headers that are kept with a file have this message id."""
        return any(
            value == self.text and folded(name) == _ID_HEADER
            for name, value in (from_text(headers) if headers else {}).items()
        )


def _encoded(text: str) -> bytes:
    """As it is on the disk; empty for what no name on a disk and no message id is like."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b""


def _in_json(raw: bytes) -> bytes:
    return msgspec.json.encode(raw.decode("utf-8", "replace"))[1:-1]


def _beginnings_of_numbered(name: bytes) -> set[bytes]:
    """Patterns of what a numbered name of this one begins with."""
    stem, dot, _ = name.rpartition(b".")
    start = family(name)
    is_whole = start == (stem if dot else name)
    # Of a name whose ending is too long to be one, the number follows the whole of it.
    return {re.escape(start) + b"~[0-9]" * is_whole, re.escape(name) + b"~[0-9]"}
