"""Strategies that worker processes of the tests import by name."""

from __future__ import annotations

from pathlib import Path

KEY_FILE = Path()


def key_from_file(archive: str) -> str:
    """A key generator that works only once `KEY_FILE` is there."""
    return KEY_FILE.read_text().format(archive)


def names_that_lead_out(parsed: object) -> str:
    """A name generator as nobody should write it."""
    escapes = ["../../escaped.json", "/escaped.json", "..", "a/../../escaped.json"]
    return escapes[hash(repr(parsed)) % len(escapes)]


def packer_that_always_fails(folder: Path) -> Path:
    raise OSError(f"7z cannot be run in {folder}")
