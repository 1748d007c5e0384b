"""`python -m benchmarks.bench_split`: what dividing a slot costs beside packing it.

Slots of the same documents are sealed, whole or divided by a field of few or many values and the
day of another, and packed: CPU and wall-clock milliseconds per 1,000 messages.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.documents import DISTINCT, Documents, name_of
from fuploader_dagster.delivery.ship import pack_partitions
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import pipeline

KEY = "tenant={tenant}/day={event:%Y-%m-%d}/{archive}"
SPLIT_BY = {"tenant": "tenant", "event": "created_at"}
DAY = 86_400


def main(
    messages: Annotated[int, typer.Option(help="Of about 1.5 KB, in a slot.")] = 10_000,
    rounds: Annotated[int, typer.Option(help="Of each way, in turns.")] = 5,
) -> None:
    """Slots of one value and of several, sealed and packed."""
    kinds = [Documents(1500, seed=seed) for seed in range(-(-messages // DISTINCT))]
    spent: dict[str, list[tuple[float, ...]]] = {}
    for number in range(rounds):
        for tenants in (0, 1, 5, 25):
            with tempfile.TemporaryDirectory() as name:
                way = f"{2 * tenants} pieces" if tenants > 1 else ("whole", "one value")[tenants]
                once = _sealed_and_packed(Path(name), kinds, messages, tenants)
                if number > 0:  # the first round warms up
                    spent.setdefault(way, []).append(once)
    for way, times in spent.items():
        seal_cpu, seal, pack_cpu, pack = (
            statistics.median(each) / messages * 1e6 for each in zip(*times, strict=True)
        )
        typer.echo(
            f"{way}: per 1,000 messages sealed in {seal_cpu:.1f} ms of CPU ({seal:.1f} ms), packed "
            f"in {pack_cpu:.1f} ms of CPU ({pack:.1f} ms)"
        )


def _sealed_and_packed(
    folder: Path, kinds: list[Documents], messages: int, tenants: int
) -> tuple[float, ...]:
    """CPU and wall-clock seconds of sealing, then those of packing. No tenants: no `split_by`."""
    values = {"split_by": SPLIT_BY, "key": KEY, "split_limit": 1000} if tenants else {}
    settings = pipeline(folder, **values)
    with SlotOwner(settings, 0) as slot:
        for number in range(messages):
            document = json.loads(kinds[number // DISTINCT].content(number % DISTINCT))
            document["tenant"] = f"tenant-{number % max(tenants, 1)}"
            document["created_at"] = DAY * (number % 2 if tenants > 1 else 0) + number
            slot.add(name_of(number), json.dumps(document, separators=(",", ":")).encode())
        slot.commit()
        cpu, wall = time.process_time(), time.perf_counter()
        sealed = slot.seal_divided("count")
        sealing = time.process_time() - cpu, time.perf_counter() - wall
    cpu, wall = time.process_time(), time.perf_counter()
    list(pack_partitions([one.seal.partition for one in sealed], settings))
    return *sealing, time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    typer.run(main)
