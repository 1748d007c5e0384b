"""The horizon decides from figures alone how far it is safe to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fuploader_dagster.resources.sources.sql.horizon import Horizon

Look = Callable[[float, int | None], int | None]


class Figures:
    """What the horizon asks a transaction and its dialect for."""

    def __init__(self, snapshot: tuple[int, int] | None = None) -> None:
        self.numbers = snapshot
        self.dialect = self

    def snapshot(self, connection: Any) -> tuple[int, int] | None:
        return self.numbers

    def run(self, action: Callable[[Any], Any], trying: str) -> Any:
        return action(None)


def looking(figures: Figures, lag_seconds: float) -> Look:
    seen: list[int | None] = [None]
    horizon = Horizon(lag_seconds, lambda _: None if seen[0] is None else (seen[0],), "a table")

    def look(now: float, highest: int | None) -> int | None:
        seen[0] = highest
        horizon.look(figures, now)  # type: ignore[arg-type]
        return None if horizon.safe is None else int(horizon.safe[0])

    return look


def test_a_key_is_safe_when_the_lag_has_passed_since_it_was_seen() -> None:
    look = looking(Figures(), 10)
    assert look(0, None) is None
    assert look(1, 5) is None
    assert look(6, 7) is None
    assert look(10.9, 9) is None
    assert look(11, 9) == 5
    assert look(15.9, 9) == 5
    assert look(16, 9) == 7


def test_without_a_lag_what_is_seen_is_safe_at_once() -> None:
    look = looking(Figures(), 0)
    assert [look(0, 5), look(0, 6), look(1, 6)] == [5, 6, 6]


def test_a_key_waits_for_every_transaction_that_had_a_number_by_then() -> None:
    figures = Figures((100, 103))
    look = looking(figures, 0)
    assert look(0, 5) is None  # 100 to 102 may be running
    figures.numbers = (102, 110)
    assert look(1, 9) is None
    figures.numbers = (103, 110)
    assert look(2, 9) == 5
    figures.numbers = (110, 110)
    assert look(3, 9) == 9


def test_the_numbers_are_those_after_the_lag() -> None:
    figures = Figures((100, 100))
    look = looking(figures, 2)
    assert look(0, 5) is None
    figures.numbers = (100, 101)  # it drew its key before, and writes now
    assert look(2, 5) is None
    figures.numbers = (101, 101)
    assert look(3, 5) == 5


def test_among_transactions_that_always_overlap_it_keeps_up() -> None:
    """Each lasts five looks, and one begins with every look."""
    figures = Figures()
    look = looking(figures, 0)
    for step in range(100):
        figures.numbers = (max(0, step - 5), step + 1)
        safe = look(step, step)
    assert safe is not None
    assert safe >= 90


def test_looks_that_come_quickly_are_not_all_noted() -> None:
    figures, seen = Figures(), [0]
    horizon = Horizon(100, lambda _: (seen[0],), "a table")
    for seen[0] in range(20_000):
        horizon.look(figures, seen[0] / 200)  # type: ignore[arg-type]
    assert len(horizon._noted) <= 25
