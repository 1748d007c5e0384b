"""Publishing around messages that a queue will never take, for whoever has others to send.

What must always hold: one refused message keeps no other from the queue, and is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fuploader_dagster.errors import MessageRefused

Pair = TypeVar("Pair")


def publish_accepted(
    publish: Callable[[Sequence[Pair]], Any], messages: Sequence[Pair]
) -> dict[int, MessageRefused]:
    """Publish all messages that the queue takes; returns why it refused others, by position.

    Around a refused one some may be sent twice, where the queue did not say which it had.
    """
    refused: dict[int, MessageRefused] = {}
    left = list(range(len(messages)))
    while left:
        try:
            publish([messages[at] for at in left])
        except MessageRefused as error:
            refused[left.pop(error.position)] = error
            del left[: error.confirmed]
        else:
            break
    return refused
