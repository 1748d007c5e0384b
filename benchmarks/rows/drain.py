"""Draining with one worker: rate, CPU, and the share of what a bare consumer reaches."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.drains import Case, drains
from benchmarks.ground import Ground, Sizes, note
from benchmarks.results import Row


def our_case(sizes: Sizes) -> Case:
    """The drain that other rows compare with."""
    return Case("ours", sizes.messages(200_000, 40_000))


def fuploader_case(sizes: Sizes) -> Case:
    return Case("fuploader", sizes.messages(20_000, 5_000))


def rows(ground: Ground) -> Iterator[Row]:
    sizes = ground.sizes
    bare = drains(ground, Case("bare", sizes.messages(200_000, 40_000)))
    ours = drains(ground, our_case(sizes))
    fuploader = drains(ground, fuploader_case(sizes), sizes.times(5, 2))
    rate = ours.spread(lambda run: run.messages_per_second)
    fuploader_rate = fuploader.spread(lambda run: run.messages_per_second)
    bare_rate = bare.spread(lambda run: run.messages_per_second)
    broker = ours.spread(lambda run: run.broker_ms_per_1000)
    busy = ours.spread(lambda run: run.cores)
    yield Row(
        row="drain, one worker (ours durable before the ack, FUploader not durable)",
        unit="messages/s",
        ours=rate,
        fuploader=fuploader_rate,
        bare=bare_rate,
        against="fuploader",
        least=15,
        aim=20,
        note=note(ours, fuploader, bare),
    )
    yield Row(
        row="CPU of the drain",
        unit="ms per 1,000 messages",
        ours=ours.spread(lambda run: run.cpu_ms_per_1000),
        fuploader=fuploader.spread(lambda run: run.cpu_ms_per_1000),
        bare=bare.spread(lambda run: run.cpu_ms_per_1000),
        against="fuploader",
        judge="ours",
        least=50,
        aim=35,
        more_is_better=False,
        note=note(
            f"the broker itself takes {broker.median:.0f} ms" if broker else "",
            f"worker and broker keep {busy.median:.2f} cores busy" if busy else "",
            ours,
            fuploader,
            bare,
        ),
    )
    yield Row(
        row="drain against a bare pika consumer (receive, one ack per 500)",
        unit="messages/s",
        ours=rate,
        fuploader=fuploader_rate,
        bare=bare_rate,
        against="bare",
        least=0.4,
        aim=0.6,
        note=note(ours, fuploader, bare),
    )
    if not sizes.quick:
        messages = fuploader_case(sizes).messages
        documented = drains(ground, Case("fuploader as documented", messages))
        yield Row(
            row="drain, one worker, FUploader as its page configures it",
            unit="messages/s",
            ours=rate,
            fuploader=documented.spread(lambda run: run.messages_per_second),
            against="fuploader",
            note=note(ours, documented),
        )
