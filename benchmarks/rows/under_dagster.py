"""The whole way under `dagster dev`, against the same number of messages without Dagster.

The number is large, so that the seconds between sensor ticks count for what they are: a delay at
the end, not a rate.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.ground import Ground, note
from benchmarks.results import Row
from benchmarks.ways import Way, ways


def rows(ground: Ground) -> Iterator[Row]:
    messages = ground.sizes.messages(1_000_000, 200_000)
    times = ground.sizes.times(3, 1)
    dagster = ways(ground, Way("ours under dagster dev", messages), times)
    alone = ways(ground, Way("ours", messages), times)
    yield Row(
        row="whole way under dagster dev, against the same without Dagster (bare)",
        unit="messages/s",
        ours=dagster.spread(lambda run: run.messages_per_second),
        bare=alone.spread(lambda run: run.messages_per_second),
        against="bare",
        least=0.8,
        aim=0.95,
        note=note(f"{messages:,} messages", dagster, alone),
    )
    yield Row(
        row="sealed slot to materialised upload, under that load",
        unit="s, median of a run",
        ours=dagster.spread(lambda run: run.sealed_to_materialised_seconds),
        judge="ours",
        least=30,
        aim=10,
        more_is_better=False,
        note=note(dagster),
    )
