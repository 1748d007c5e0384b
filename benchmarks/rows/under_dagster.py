"""The whole way under `dagster dev`, against the same number of messages without Dagster.

The number is large, so that the seconds between sensor ticks count for what they are: a delay at
the end, not a rate.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.ground import Ground, note, ratio_of_rounds
from benchmarks.results import Row
from benchmarks.ways import Way, go


def rows(ground: Ground) -> Iterator[Row]:
    messages = ground.sizes.messages(1_000_000, 200_000)
    dagster, alone = Way("ours under dagster dev", messages), Way("ours", messages)
    rounds = ground.rounds(
        f"{dagster}, and without Dagster",
        {"dagster": lambda: go(ground, dagster), "alone": lambda: go(ground, alone)},
        ground.sizes.times(3, 1),
    )
    ratios = rounds.spread(
        lambda one: one["dagster"].messages_per_second / one["alone"].messages_per_second
    )
    yield Row(
        row="whole way under dagster dev, against the same without Dagster (bare)",
        unit="messages/s",
        ours=rounds.spread(lambda one: one["dagster"].messages_per_second),
        bare=rounds.spread(lambda one: one["alone"].messages_per_second),
        against="bare",
        least=0.8,
        aim=0.95,
        note=note(f"{messages:,} messages", ratio_of_rounds(ratios), rounds),
    )
    yield Row(
        row="sealed slot to materialised upload, under that load",
        unit="s, median of a run",
        ours=rounds.spread(lambda one: one["dagster"].sealed_to_materialised_seconds),
        judge="ours",
        least=30,
        aim=10,
        more_is_better=False,
        note=note(rounds),
    )
