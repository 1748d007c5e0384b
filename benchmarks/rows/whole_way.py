"""The whole way without Dagster: drain and ship at once, until the object store has everything."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.ground import Ground, note
from benchmarks.results import Row
from benchmarks.ways import Way, ways


def rows(ground: Ground) -> Iterator[Row]:
    sizes = ground.sizes
    ours = ways(ground, Way("ours", sizes.messages(200_000, 40_000)), sizes.times(5, 2))
    theirs = Way("fuploader", sizes.messages(20_000, 5_000))
    fuploader = ways(ground, theirs, sizes.times(5, 2))
    yield Row(
        row="whole way without Dagster, one worker",
        unit="messages/s",
        ours=ours.spread(lambda run: run.messages_per_second),
        fuploader=fuploader.spread(lambda run: run.messages_per_second),
        against="fuploader",
        least=14,
        aim=20,
        note=note(ours, fuploader),
    )
    if sizes.quick:
        return
    ours_two = ways(ground, Way("ours", sizes.messages(200_000), workers=2))
    theirs_two = Way("fuploader", sizes.messages(40_000), workers=2)
    fuploader_two = ways(ground, theirs_two, sizes.times(3))
    yield Row(
        row="whole way without Dagster, two workers",
        unit="messages/s",
        ours=ours_two.spread(lambda run: run.messages_per_second),
        fuploader=fuploader_two.spread(lambda run: run.messages_per_second),
        against="fuploader",
        note=note(ours_two, fuploader_two),
    )
