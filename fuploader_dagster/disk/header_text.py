"""The message headers that are kept with a file, as text.

What must always hold: one form everywhere. The same text is in the record of a slot's index, in the
tar header of the file's member, and in an archive's manifest, and it is compared byte by byte. It
is made once, when the message is stored, and never again from its values.

The form: a JSON object of texts in UTF-8, names sorted, no spaces; empty if there are no headers.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fuploader_dagster.errors import UNREADABLE_JSON

MOST_BYTES = 16 * 1024
"""Of one file's headers. A tar header with them and the longest name stays far below 64 KiB, which
is what an index record can say."""

_decode = msgspec.json.Decoder(dict[str, str]).decode


def folded(name: str) -> str:
    """What two names have in common that mean the same header: `Content_Type`, `content-type`."""
    return name.lower().replace("_", "-")


def to_text(headers: Mapping[str, str]) -> str:
    """The text for these headers. All of it must be encodable as UTF-8."""
    return msgspec.json.encode(headers, order="sorted").decode() if headers else ""


def from_text(text: str) -> dict[str, str]:
    """The headers in a text; none if it is not of this form (an archive of another program)."""
    if not text.startswith("{"):
        return {}
    try:
        return _decode(text)
    except UNREADABLE_JSON:
        return {}
