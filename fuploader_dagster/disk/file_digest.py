"""The size and SHA-256 of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

_READ_BYTES = 1 << 20


def digest_of(path: Path) -> tuple[int, bytes]:
    """Size in bytes and SHA-256 of the file's content."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size_bytes += len(block)
    return size_bytes, digest.digest()
