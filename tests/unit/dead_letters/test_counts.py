"""Counts of dead letters: grouped by reason, bounded, and known for the last hour."""

from __future__ import annotations

from pathlib import Path

from fuploader_dagster.dead_letters.counts import (
    MAX_REASONS,
    OTHER_REASONS,
    DeadLetterCounts,
    grouped,
    read_counts,
)
from fuploader_dagster.dead_letters.letters import DeadLetterBox
from fuploader_dagster.disk.layout import Layout
from tests.unit.dead_letters.test_letters import NOON, letter

HOUR = 3_600.0


def test_reasons_that_differ_only_in_names_and_numbers_are_one() -> None:
    assert grouped("the file name 'a/b' cannot be used: / at 17") == grouped(
        "the file name '../c.json' cannot be used: / at 4,096"
    )
    assert grouped('"x" is not an envelope') != grouped('"x" is not a JSON object')


def test_however_many_reasons_there_are_the_counts_stay_small() -> None:
    counts = DeadLetterCounts()
    counts.add((f"reason {'x' * number}" for number in range(1_000)), NOON)
    assert counts.total == sum(counts.reasons.values()) == 1_000
    assert len(counts.reasons) == MAX_REASONS + 1
    assert counts.reasons[OTHER_REASONS] == 1_000 - MAX_REASONS


def test_the_last_hour_is_known_and_what_came_before_it_is_forgotten() -> None:
    counts = DeadLetterCounts()
    for minutes in (0, 30, 59):
        counts.add(["why"], NOON + 60 * minutes)
    assert counts.last_hour(NOON + 59 * 60) == 3
    assert counts.last_hour(NOON + 60 * 60) == 2
    assert counts.last_hour(NOON + 3 * HOUR) == 0
    counts.add(["why"], NOON + 3 * HOUR)
    assert len(counts.minutes) == 1
    assert counts.total == 4


def test_workers_are_counted_together_and_go_on_after_a_restart(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for worker in (0, 1, 0):  # a new box each time: a new process
        box = DeadLetterBox(layout, worker, clock=lambda: NOON)
        box.keep([letter(b"1", "no name"), letter(b"2", "no content")])
    counts = read_counts(layout)
    assert (counts.total, counts.last_hour(NOON)) == (6, 6)
    assert counts.reasons == {"no name": 3, "no content": 3}
    for path in layout.dead_letters.glob("counts-*"):
        path.write_bytes(b"{torn")
    assert read_counts(layout).total == 0


def test_what_was_counted_before_the_clock_was_set_back_ages_like_the_rest() -> None:
    counts = DeadLetterCounts()
    counts.add(["why"], NOON + 8 * HOUR)
    counts.add(["why"], NOON)
    assert counts.last_hour(NOON) == 2
    assert counts.last_hour(NOON + 2 * HOUR) == 0
