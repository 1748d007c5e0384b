"""Publish many messages although the queue refuses some of them for good.

What must always hold: a refused message keeps no other message from the queue, and is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fuploader_dagster.errors import MessageRefused

Pair = TypeVar("Pair")


def publish_accepted(
    publish: Callable[[Sequence[Pair]], Any], messages: Sequence[Pair]
) -> dict[int, MessageRefused]:
    """Publish all messages that the queue accepts; return the refusals by position.

    If the queue does not say which messages it accepted before a refusal, those are sent twice.
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
