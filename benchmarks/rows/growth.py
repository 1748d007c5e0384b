"""Whether a message costs the same as the work grows: backlog, slots, payload.

The row of a million messages is with the memory, which needs the same drain.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.drains import Case, drains
from benchmarks.ground import Ground, note
from benchmarks.results import Row

BACKLOGS = (10_000, 100_000)
SLOTS = (1, 8, 64)
PAYLOADS = ((100, 200_000), (2_000, 100_000), (64_000, 20_000), (1_000_000, 2_000))
"""Bytes of a document, and how many of them."""
_FEW_LARGE = 2_000


def rows(ground: Ground) -> Iterator[Row]:
    sizes = ground.sizes
    for backlog in BACKLOGS:
        case = Case("ours", sizes.messages(backlog))
        yield from _rows(ground, f"backlog of {case.messages:,}", case)
    for slots in SLOTS:
        case = Case("ours", sizes.messages(100_000), slots_per_worker=slots)
        yield from _rows(ground, f"{slots} slots" if slots > 1 else "one slot", case)
    for payload_bytes, count in PAYLOADS:
        messages = min(count, max(_FEW_LARGE, sizes.messages(count)))
        case = Case("ours", messages, payload_bytes=payload_bytes)
        yield from _rows(ground, f"documents of {payload_bytes:,} bytes", case)


def _rows(ground: Ground, what: str, case: Case) -> Iterator[Row]:
    runs = drains(ground, case)
    rate = runs.spread(lambda run: run.messages_per_second)
    memory = runs.spread(lambda run: run.peak_mib)
    said = [f"{case.messages:,} messages"]
    if rate and memory:
        said += [
            f"{rate.median * case.payload_bytes / 1e6:,.0f} MB/s of documents",
            f"peak memory {memory.median:,.0f} MiB",
        ]
    yield Row(row=f"drain, {what}", unit="messages/s", ours=rate, note=note("; ".join(said), runs))
    yield Row(
        row=f"CPU of the drain, {what}",
        unit="ms per 1,000 messages",
        ours=runs.spread(lambda run: run.cpu_ms_per_1000),
        note=note(runs),
    )
