"""The messages: seeded JSON documents in FUploader's envelope, made by the FUploader package.

A backlog of a million documents would take minutes to compress, so `DISTINCT` documents are
encoded by FUploader and repeated under new file names: only the name in the envelope is exchanged,
which gives byte for byte what FUploader makes of the same document under that name (but for the
time of day, which it lets gzip note).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from file_uploader import FileMessage, encode_file_message

DISTINCT = 1000
_LARGE_BYTES = 16 * 1024
_PLACEHOLDER = "name-to-be.json"


class Documents:
    """An endless row of documents of about `size_bytes`; number i always has the same content."""

    def __init__(self, size_bytes: int, *, seed: int = 20_260) -> None:
        distinct = DISTINCT if size_bytes <= _LARGE_BYTES else 20
        dice = random.Random(seed)
        words = _words(dice)
        self.documents = [_document(dice, words, size_bytes) for _ in range(distinct)]
        self._bodies = [_around_name(document) for document in self.documents]

    def body(self, number: int) -> bytes:
        """The message, persistent and as FUploader's publisher sends it."""
        before, after = self._bodies[number % len(self._bodies)]
        return before + name_of(number).encode() + after

    def content(self, number: int) -> bytes:
        """The bytes of the file that must come out."""
        return _compact(self.documents[number % len(self.documents)])

    def messages(self, count: int, first: int = 0) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """(body, headers) pairs for a publisher."""
        for number in range(first, first + count):
            yield self.body(number), {}


@cache
def documents_of(size_bytes: int) -> Documents:
    """Made once a size."""
    return Documents(size_bytes)


def name_of(number: int) -> str:
    return f"document-{number:09d}.json"


def _words(dice: random.Random) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(dice.choices(letters, k=dice.randint(3, 11))) for _ in range(5000)]


def _document(dice: random.Random, words: list[str], size_bytes: int) -> dict[str, Any]:
    document: dict[str, Any] = {"id": f"{dice.getrandbits(60):019d}", "text": ""}
    if size_bytes >= 1000:
        document |= {
            "author": {
                "id": f"{dice.getrandbits(60):019d}",
                "name": " ".join(dice.choices(words, k=2)),
            },
            "statistics": {name: dice.randint(0, 10**6) for name in ("likes", "views", "shares")},
            "created_at": 1_700_000_000 + dice.randint(0, 10**7),
            "tags": dice.choices(words, k=8),
        }
    missing = max(0, size_bytes - len(_compact(document)))
    text = " ".join(dice.choices(words, k=missing // 4 + 1))
    document["text"] = text[:missing]
    return document


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _around_name(document: dict[str, Any]) -> tuple[bytes, bytes]:
    envelope = encode_file_message(FileMessage(file_name=_PLACEHOLDER, payload=document))
    before, found, after = _compact(envelope).partition(_PLACEHOLDER.encode())
    assert found, "FUploader's envelope does not hold the file name"
    return before, after
