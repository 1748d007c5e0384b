"""Strategies that worker processes of the tests import by name."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

from fuploader_dagster.processing.envelope import Envelope

KEY_FILE = Path()


def key_from_file(archive: str) -> str:
    """A key generator that works only once `KEY_FILE` is there."""
    return KEY_FILE.read_text().format(archive)


def names_that_lead_out(parsed: object) -> str:
    """A name generator as nobody should write it."""
    escapes = ["../../escaped.json", "/escaped.json", "..", "a/../../escaped.json"]
    return escapes[hash(repr(parsed)) % len(escapes)]


def another_name(parsed: object) -> str:
    """A name generator that gives a message that comes again another name."""
    return f"{secrets.token_hex(8)}.json"


def packer_that_always_fails(folder: Path) -> Path:
    raise OSError(f"7z cannot be run in {folder}")


def deadly(body: bytes) -> dict[str, str]:
    """A parser that crashes, eats memory or hangs where a body says so."""
    if b"crash" in body:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"eat" in body:
        eaten = []
        while True:
            eaten.append(bytes(1 << 24))
    if b"hang" in body:
        time.sleep(600)
    return {"file_name": body.decode(), "payload": body.decode()}


def by_instruction(body: bytes) -> Envelope:
    """A parser that takes as long as the body says: `name seconds`."""
    name, _, seconds = body.decode().partition(" ")
    time.sleep(float(seconds or 0))
    return Envelope(name, "bytes", name.encode())


async def by_instruction_later(body: bytes) -> Envelope:
    """The same as a parser that is async by name only: it does not let others run meanwhile."""
    return by_instruction(body)


def runs_a_program_that_reads_stdin(body: bytes) -> Envelope:
    """As a parser does that calls ffmpeg, ssh or `while read`."""
    read = subprocess.run(["cat"], stdout=subprocess.PIPE, check=True, timeout=60).stdout
    return Envelope(body.decode(), "bytes", read)
