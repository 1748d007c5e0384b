"""The functions of the pipeline that processes: copied to where an operator keeps such a module.

What becomes of a file is decided by the number in its name. One of the functions ends its process,
as an extension in C would.
"""

import hashlib
import os
import signal
import time

from fuploader_dagster import Item, Result, processor

EVERY = 40
"""Each kind comes once in so many numbers. They are even: odd ones go to the other pipeline."""
NONE, TWO, BAD, SLOW = 2, 4, 6, 8
DEADLY_EVERY, DEADLY = 4_000, 810
SLOW_SECONDS = 0.05


def is_bad(number: int) -> bool:
    """Whether the file ends as a dead letter."""
    return number % EVERY == BAD or number % DEADLY_EVERY == DEADLY


def contents_of(number: int, content: bytes) -> list[bytes]:
    """What must come out of a file."""
    if is_bad(number) or number % EVERY == NONE:
        return []
    digest = hashlib.sha256(content).hexdigest().encode()
    return [b"%d %d %s" % (number, part, digest) for part in range(1 + (number % EVERY == TWO))]


@processor
def digests(item: Item) -> list[Result]:
    number = int(item.name[1:9])
    if number % DEADLY_EVERY == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    if number % EVERY == BAD:
        raise ValueError("a bad file")
    if number % EVERY == SLOW:
        time.sleep(SLOW_SECONDS)
    return [Result(one) for one in contents_of(number, item.content)]
