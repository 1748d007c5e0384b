"""Deliveries that are broken at some moment and tried again, for the fault tests of any sink."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import pytest

from fuploader_dagster.contracts.sink import (
    Delivery,
    ItemRows,
    RejectedItem,
    SinkSettings,
    StoredRows,
)
from fuploader_dagster.errors import FuploaderError, SinkUnavailable
from fuploader_dagster.testing.sink_contract import chain, no_reject

ITEMS = 12
BAD = (6,)
GOOD = ITEMS - len(BAD)

Attempt = Callable[[], tuple[StoredRows, Sequence[int]]]
"""Gives what was stored, and the positions of the items that were rejected."""


def delivery_of(number: int, redo: int = 0) -> Delivery:
    return Delivery("shop", "rows", f"partition-{number}", redo)


def attempted(
    settings: SinkSettings, delivery: Delivery, items: Iterable[ItemRows]
) -> tuple[StoredRows, list[int]]:
    """One attempt with a sink of its own."""
    rejected: list[RejectedItem] = []
    sink = settings.sink()
    try:
        stored = sink.store(delivery, items, rejected.extend)
    finally:
        sink.close()
    return stored, [one.position for one in rejected]


def until_it_is_stored(
    attempt: Attempt, *, attempts: int = 5, mend: Callable[[], None] = lambda: None
) -> bool:
    """As the engine does. Whether an attempt that seemed to fail had stored it. `mend` brings back
    what broke."""
    for _ in range(attempts):
        try:
            stored, rejected = attempt()
        except SinkUnavailable:
            continue
        finally:
            mend()
        assert rejected == ([] if stored.already_there else list(BAD))
        assert stored.rows == GOOD
        return stored.already_there
    raise AssertionError(f"a delivery could not be stored in {attempts} attempts")


def is_killed(arm: Callable[[], None], attempt: Attempt) -> bool:
    """Try it in a process that `arm` makes kill itself at some moment. Whether it died of that."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            attempt()
        finally:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


def failure_of(
    settings: SinkSettings, delivery: Delivery, items: Iterable[ItemRows]
) -> FuploaderError:
    """What storing them fails with."""
    sink = settings.sink()
    try:
        with pytest.raises(FuploaderError) as caught:
            sink.store(delivery, items, no_reject)
    finally:
        sink.close()
    assert len(list(chain(caught.value))) == 1  # no error of the driver's, which may quote values
    assert caught.value.hint
    return caught.value
