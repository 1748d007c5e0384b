"""What a soak does, as pure functions of its seed: the messages, and who is killed when and how."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Victim = Literal[
    "worker",
    "run",
    "code_server",
    "code_server_alone",
    "daemon",
    "rabbitmq",
    "redis",
    "s3",
]
"""`code_server` goes with all that it started (a container, a unit of systemd); `code_server_alone`
leaves that behind, so that old and new ones overlap."""
VICTIMS: tuple[Victim, ...] = ("worker", "worker", *get_args(Victim))
"""A deck that is shuffled and dealt again and again, so that each gets its share."""
POISON_ONE_IN = 400
TERM_ONE_IN = 4
OVERLAP_ONE_IN = 4
FLUSH_ONE_IN = 2

_NAME = re.compile(r"m(\d{8})\.json")


@dataclass(frozen=True)
class Kill:
    """One fault."""

    after_seconds: float
    """After the kill before."""
    victim: Victim
    polite: bool
    """SIGTERM instead of SIGKILL."""
    down_seconds: float
    """Until the process manager starts it again."""
    emptied: bool
    """Redis comes back without its data."""
    dice: float
    """From 0 to 1: which of several."""

    def __str__(self) -> str:
        how = "SIGTERM" if self.polite else "SIGKILL"
        return f"{how} {self.victim}{', emptied' if self.emptied else ''}"


def kills(seed: int, pause_seconds: float) -> Iterator[Kill]:
    """Endless. Mostly a pause apart, sometimes so close that one falls into another's wake."""
    dice = random.Random(f"{seed} kills")
    while True:
        for victim in dice.sample(VICTIMS, len(VICTIMS)):
            apart = dice.randrange(OVERLAP_ONE_IN)
            yield Kill(
                after_seconds=dice.uniform(0.6, 1.4) * pause_seconds if apart else dice.random(),
                victim=victim,
                polite=not dice.randrange(TERM_ONE_IN) and victim != "code_server_alone",
                down_seconds=dice.uniform(0, 4),
                emptied=victim == "redis" and not dice.randrange(FLUSH_ONE_IN),
                dice=dice.random(),
            )


def is_poison(seed: int, number: int) -> bool:
    """Whether this message can never become a file."""
    return not random.Random(f"{seed} {number} poison").randrange(POISON_ONE_IN)


def name_of(number: int) -> str:
    return f"m{number:08d}.json"


def number_of(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def content_of(seed: int, number: int) -> bytes:
    """The file that must come out."""
    dice = random.Random(f"{seed} {number}")
    text = dice.randbytes(dice.randrange(1200)).hex()
    return json.dumps({"seed": seed, "number": number, "text": text}).encode()


def body_of(seed: int, number: int) -> bytes:
    """The message: an envelope, made without the code under test, or poison."""
    if is_poison(seed, number):
        return b"poison %d of %d" % (number, seed)
    packed = gzip.compress(content_of(seed, number), 1, mtime=0)
    envelope = {
        "file_name": name_of(number),
        "compression": "gzip",
        "content_type": "json",
        "payload": base64.b64encode(packed).decode(),
    }
    return json.dumps(envelope).encode()
