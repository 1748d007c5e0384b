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

from tests.soak.handlers import contents_of, is_bad
from tests.soak.properties import properties
from tests.soak.publisher import Outgoing

Victim = Literal[
    "worker",
    "run",
    "child",
    "code_server",
    "code_server_alone",
    "daemon",
    "queue",
    "redis",
    "s3",
]
"""`queue` is the server of the queues, `redis` that of the states. `child` works for a run that
processes. `code_server` goes with all that it started (a container, a unit of systemd);
`code_server_alone` leaves that behind, so that old and new ones overlap."""
VICTIMS: tuple[Victim, ...] = ("worker", "worker", *get_args(Victim))
"""A deck that is shuffled and dealt again and again, so that each gets its share."""
PLAIN, LIMITED = "soak", "limited"
"""The pipelines, which have queues of these names. What is even goes to the first: no parser of its
own, but functions that process its files. What is odd goes to a parser that is slow at times and
dies of a few messages. Of RabbitMQ, the first is a classic queue, the other a quorum queue that
drops a message after some deliveries."""
DELIVERY_LIMIT = 20

POISON_ONE_IN = 400
EMPTY_ONE_IN = 50
LARGE_ONE_IN = 400
LARGE_BYTES = range(100_000, 3_700_000)
"""Sizes of files: their messages have up to 5 MB."""
ODD_ONE_IN = 10
SLOW_ONE_IN = 300
SLOW_SECONDS = (0.05, 0.2)
SLOW_TOGETHER, STRETCHES = 150, 27
"""Every 27th stretch of 150 messages: half of them, all slow, take longer than two heartbeats."""
DEADLY_EVERY = 24_000
DEADLY_AT = (601, 621, 641, 661)
"""Four together: each ends its worker four times, after pauses that grow."""
TERM_ONE_IN = 4
OVERLAP_ONE_IN = 4
FLUSH_ONE_IN = 2
PAUSED: tuple[tuple[str, ...], ...] = (("intake",), ("shipping",), ("intake", "shipping"))
"""What may be paused: a deck, as the victims are."""
PAUSED_SECONDS = (1, 12)

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


@dataclass(frozen=True)
class Pause:
    """Somebody pauses a pipeline, and resumes it later."""

    after_seconds: float
    """After the end of the pause before."""
    pipeline: str
    parts: tuple[str, ...]
    seconds: float
    apart: bool
    """Each part is resumed by a command of its own."""

    @property
    def what(self) -> str:
        return " and ".join(self.parts)

    @property
    def options(self) -> list[str]:
        """Of the command; without any, it is for both parts."""
        return [f"--{part}" for part in self.parts if len(self.parts) == 1]

    @property
    def resumed(self) -> list[list[str]]:
        """The options of each command that ends it."""
        return [[f"--{part}"] for part in self.parts] if self.apart else [self.options]

    def __str__(self) -> str:
        return f"pause {self.what} of {self.pipeline} for {self.seconds:.0f} s"


def pauses(seed: int, pause_seconds: float) -> Iterator[Pause]:
    """Endless. A quarter as often as kills."""
    dice = random.Random(f"{seed} pauses")
    while True:
        for parts in dice.sample(PAUSED, len(PAUSED)):
            yield Pause(
                after_seconds=dice.uniform(2, 6) * pause_seconds,
                pipeline=dice.choice((PLAIN, LIMITED)),
                parts=parts,
                seconds=dice.uniform(*PAUSED_SECONDS),
                apart=not dice.randrange(2),
            )


def queue_of(number: int) -> str:
    return LIMITED if number % 2 else PLAIN


def is_poison(seed: int, number: int) -> bool:
    """Whether this message can never become a file."""
    some = not random.Random(f"{seed} {number} poison").randrange(POISON_ONE_IN)
    return some or is_deadly(seed, number)


def is_deadly(seed: int, number: int) -> bool:
    """Whether the parser ends its process at this message."""
    return (number - 2 * seed) % DEADLY_EVERY in DEADLY_AT


def pause_of(seed: int, number: int) -> float:
    """How long the parser takes for it."""
    dice = random.Random(f"{seed} {number} pause")
    slow = not dice.randrange(SLOW_ONE_IN) or not (number // SLOW_TOGETHER + seed) % STRETCHES
    return dice.uniform(*SLOW_SECONDS) if slow and queue_of(number) == LIMITED else 0


def name_of(number: int) -> str:
    return f"m{number:08d}.json"


def number_of(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def results_of(seed: int, number: int) -> list[tuple[str, bytes]]:
    """The results that must come out of a file, with their names in the archive."""
    if queue_of(number) != PLAIN:
        return []
    contents = contents_of(number, content_of(seed, number))
    stem, _, ending = name_of(number).rpartition(".")
    names = [f"results/{stem}.{ending}", f"results/{stem}~2.{ending}"]
    return list(zip(names, contents, strict=False))


def is_unprocessable(number: int) -> bool:
    """Whether a file, once it is stored, is a dead letter of the processing."""
    return queue_of(number) == PLAIN and is_bad(number)


def content_of(seed: int, number: int) -> bytes:
    """The file that must come out."""
    dice = random.Random(f"{seed} {number}")
    if not dice.randrange(EMPTY_ONE_IN):
        return b""
    if not dice.randrange(LARGE_ONE_IN):
        return b"%d of %d " % (number, seed) + dice.randbytes(dice.choice(LARGE_BYTES))
    text = dice.randbytes(dice.randrange(1200)).hex()
    return json.dumps({"seed": seed, "number": number, "text": text}).encode()


def body_of(seed: int, number: int) -> bytes:
    """The message: an envelope, made without the code under test, or poison."""
    if is_poison(seed, number):
        kind = b"deadly" if is_deadly(seed, number) else b"poison"
        return b"%s %d of %d" % (kind, number, seed)
    content = content_of(seed, number)
    envelope = {
        "file_name": name_of(number),
        "compression": "gzip",
        "content_type": "json" if content.startswith(b"{") else "bytes",
        "payload": base64.b64encode(gzip.compress(content, 1, mtime=0)).decode(),
    }
    pause = pause_of(seed, number)
    return json.dumps({"pause": round(pause, 3), **envelope} if pause else envelope).encode()


def outgoing(seed: int, number: int) -> Outgoing:
    """The message with its properties and its way."""
    dice = random.Random(f"{seed} {number} properties")
    odd = is_poison(seed, number) or not dice.randrange(ODD_ONE_IN)
    return Outgoing(queue_of(number), properties(dice, odd=odd), body_of(seed, number))
