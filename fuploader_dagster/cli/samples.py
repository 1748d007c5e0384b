"""Sample messages, so that there is something to see before anybody has configured anything."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from fuploader_dagster.processing.envelope import encode

_WORDS = [
    "harbour",
    "cloud",
    "lantern",
    "copper",
    "river",
    "orchard",
    "signal",
    "paper",
    "north",
    "window",
]


def sample_messages(count: int, *, seed: int = 1) -> Iterator[tuple[bytes, dict[str, str]]]:
    """(body, headers) pairs: documents of about 2 KB in envelopes; the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311  sample data, no secret
    for number in range(count):
        document = {
            "id": f"doc-{seed}-{number:06d}",
            "title": " ".join(dice.choices(_WORDS, k=6)),
            "text": " ".join(dice.choices(_WORDS, k=250)),
            "score": dice.random(),
        }
        content = json.dumps(document, separators=(",", ":")).encode("utf-8")
        yield encode(f"{document['id']}.json", content), {}
