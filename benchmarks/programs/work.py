"""The functions that all contenders of processing run on a document, and their parameters."""

from __future__ import annotations

import collections
import hashlib
import json

BROKER_VARIABLE = "BENCH_CELERY"
"""The variable with the broker's address, login included."""
ROUNDS = 4000
"""Of a key derivation: about a millisecond."""


def steady(content: bytes) -> bytes:
    """A millisecond of computing."""
    return hashlib.pbkdf2_hmac("sha256", content, b"bench", ROUNDS).hex().encode()


def short(content: bytes) -> bytes:
    """What parsing a document and counting its words takes: a tenth of that."""
    document = json.loads(content)
    return json.dumps(collections.Counter(document["text"].split()).most_common(20)).encode()


FUNCTIONS = {"steady": steady, "short": short}
