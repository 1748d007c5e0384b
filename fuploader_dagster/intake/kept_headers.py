"""The message headers that are kept with each file (setting `headers`), taken from the messages.

What must always hold: a file has all the headers that the setting names and its message has, or the
message becomes a dead letter that says why. A source of the user's own that fails at one message's
headers does not hold up the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from fuploader_dagster.contracts.functions import raised
from fuploader_dagster.contracts.source import Message, MessageSource
from fuploader_dagster.disk.header_text import MOST_BYTES, folded, to_text
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.processing.decoder import File


class KeptHeaders:
    def __init__(self, source: MessageSource, names: Sequence[str]) -> None:
        self._source = source
        self._wanted = {folded(name): name for name in names}

    def added(
        self, files: Sequence[File | BadMessage], messages: Sequence[Message]
    ) -> list[File | BadMessage]:
        """The files with the headers of their messages; there may be more messages than files."""
        return [
            self._with_headers(file, message) if isinstance(file, File) else file
            for file, message in zip(files, messages, strict=False)
        ]

    def _with_headers(self, file: File, message: Message) -> File | BadMessage:
        try:
            found = self._source.headers_of(message, self._wanted)
            text = to_text({name: _as_text(value) for name, value in found.items()})
        except Exception as error:  # noqa: BLE001  the dead letter says it; the others flow on
            return BadMessage(f"reading its headers raised {raised(error)}")
        size = len(text.encode("utf-8"))
        if size > MOST_BYTES:
            return BadMessage(
                f"its headers {', '.join(sorted(found))} have {size:,} bytes, and at most "
                f"{MOST_BYTES:,} are kept with a file",
                hint="take the longest of them out of the setting `headers`",
            )
        return File(file.name, file.content, text)


def _as_text(value: Any) -> str:
    """Text as it is, anything else as JSON. Half a surrogate pair becomes `\\udcff`."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text.encode("utf-8", "backslashreplace").decode()
