"""One whole way: from the queue until the object store has everything.

Without Dagster: for ours `fuploader drain` and a shipping process side by side; FUploader packs and
uploads within its own processes. Under Dagster: `fuploader dev`, which is `dagster dev` with
daemon, webserver, code server, sensor and runs.

Time is taken from the first look that finds messages handled, so starting up is not in it: a
`dagster dev` takes many seconds, once. Ours ends when the store has confirmed every message; what
is left in a slot when the queue is empty is sealed on request, as `fuploader seal` does. FUploader
cannot seal what is left, so its way ends with the last archive that must come, and the messages
in its archives are counted. Afterwards all archives are fetched and their members counted.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.contenders import FUPLOADER_TUNED, FUploader, Ours
from benchmarks.ground import Ground, Runs
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.disk.layout import PartitionKey
from tests.servers.dagster_dev import DagsterDev

FUPLOADER_PER_SLOT = 1000
"""As in the example of its page."""
LOOK_SECONDS = 0.1
_START_SECONDS = 120.0
_SLOWEST_MESSAGES_PER_SECOND = 200
_REGISTER_SECONDS = 120.0
_MATERIALISATIONS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
 ... on AssetNode { assetMaterializations(limit: 10000) { partition timestamp } } } }"""


@dataclass(frozen=True)
class Way:
    """Which contender takes how many messages the whole way."""

    contender: Literal["ours", "ours under dagster dev", "fuploader"]
    messages: int
    workers: int = 1
    per_slot: int = FUPLOADER_PER_SLOT
    """FUploader's `pack_threshold`; ours has its defaults."""

    def __str__(self) -> str:
        workers = f", {self.workers} workers" if self.workers > 1 else ""
        return f"whole way by {self.contender}: {self.messages:,} messages{workers}"

    @property
    def archives_of_fuploader(self) -> int:
        """How many must come, however its messages fall on its workers' slots: a slot that is not
        full stays, and a full one holds up to a message more for each of its writing threads."""
        full = self.messages - self.workers * (self.per_slot - 1)
        threads: int = FUPLOADER_TUNED["write_concurrency"]
        return -(-full // (self.per_slot + threads))


@dataclass(frozen=True)
class WayRun:
    """The figures of one whole way."""

    messages_per_second: float
    sealed_to_materialised_seconds: float = 0.0
    """The median over the slots; only under Dagster."""


def ways(ground: Ground, way: Way, times: int | None = None) -> Runs[WayRun]:
    """The repetitions of a way, measured once a run of the benchmarks."""
    repetitions = times or ground.sizes.times()
    return ground.keep(way, lambda: ground.repeat(str(way), lambda: go(ground, way), repetitions))


def go(ground: Ground, way: Way) -> WayRun:
    """Measure a way once."""
    bucket = ground.swift.fresh_bucket()
    try:
        with ground.backlog(2000, way.messages) as queue, ground.folder() as folder:
            if way.contender == "fuploader":
                return _with_fuploader(ground, way, queue, bucket, folder)
            ours = Ours(ground, folder, queue, {"process_count": way.workers}, bucket)
            return (_under_dagster if "dagster" in way.contender else _alone)(ground, way, ours)
    finally:
        _empty(ground, bucket)


def _with_fuploader(ground: Ground, way: Way, queue: str, bucket: str, folder: Path) -> WayRun:
    config = {**FUPLOADER_TUNED, "pack_threshold": way.per_slot}
    fuploader = FUploader(
        ground,
        folder,
        queue,
        config,
        process_count=way.workers,
        supervised=way.workers > 1,
        bucket=bucket,
    )
    with fuploader.start() as program:
        early, started = _first_handled(way, fuploader.handled, program.check)
        deadline = _deadline(way)
        while len(keys := _objects(ground, bucket)) < way.archives_of_fuploader:
            program.check()
            _check_time(deadline, f"{len(keys)} of {way.archives_of_fuploader} archives are stored")
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - started
    return WayRun((_members(ground, bucket, keys, folder) - early) / seconds)


def _alone(ground: Ground, way: Way, ours: Ours) -> WayRun:
    with ours.start_shipping() as shipping, ours.start() as drain:

        def check() -> None:
            shipping.check()
            drain.check()

        return WayRun(_until_all_is_stored(ground, way, ours, check))


def _under_dagster(ground: Ground, way: Way, ours: Ours) -> WayRun:
    with dagster_dev(ours) as dev:
        rate = _until_all_is_stored(ground, way, ours, lambda: None)
        asset = {"path": [ours.pipeline.name, "uploaded_archive"]}

        def materialised() -> list[Mapping[str, Any]]:
            node = dev.query(_MATERIALISATIONS, key=asset)["assetNodeOrError"]
            found: list[Mapping[str, Any]] = node["assetMaterializations"]
            return found

        archives = len(ours.stored())
        dev.wait_for(lambda: len(materialised()) >= archives, "events", _REGISTER_SECONDS)
        waits = [
            float(event["timestamp"]) / 1000 - key.sealed_at.timestamp()
            for event in materialised()
            if (key := PartitionKey.parse(event["partition"])) is not None
        ]
    return WayRun(rate, statistics.median(waits))


@contextmanager
def dagster_dev(ours: Ours) -> Iterator[DagsterDev]:
    """`fuploader dev` with the pipeline of `ours`, running."""
    ours.ground.swift, ours.values  # noqa: B018  their secrets are known from here on
    configuration = {"pipelines": {ours.pipeline.name: ours.values}}
    dev = DagsterDev(ours.folder / "project", configuration, {})
    try:
        dev.start()
        yield dev
    finally:
        dev.stop()


def _until_all_is_stored(ground: Ground, way: Way, ours: Ours, check: Callable[[], None]) -> float:
    """Messages a second, from the first that were handled until the last is stored."""
    assert ours.bucket is not None
    early, started = _first_handled(way, ours.handled, check)
    deadline, asked = _deadline(way), False
    while (stored := sum(ours.stored())) < way.messages:
        check()
        _check_time(deadline, f"{stored:,} of {way.messages:,} messages are stored")
        if not asked and ours.handled() >= way.messages:
            seal_on_request(ours.pipeline)
            asked = True
        time.sleep(LOOK_SECONDS)
    seconds = time.monotonic() - started
    found = _members(ground, ours.bucket, _objects(ground, ours.bucket), ours.folder)
    if found != way.messages:
        raise RuntimeError(f"{found:,} of {way.messages:,} messages are in the archives")
    return (stored - early) / seconds


def _first_handled(
    way: Way, handled: Callable[[], int], check: Callable[[], None]
) -> tuple[int, float]:
    """How many were handled at the first look that found any, and when that was."""
    deadline = _deadline(way)
    while not (early := handled()):
        check()
        _check_time(deadline, "nothing was handled")
        time.sleep(0.02)
    return early, time.monotonic()


def _deadline(way: Way) -> float:
    return time.monotonic() + _START_SECONDS + way.messages / _SLOWEST_MESSAGES_PER_SECOND


def _check_time(deadline: float, state: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"out of time: {state}")


def _objects(ground: Ground, bucket: str) -> list[str]:
    pages = ground.swift.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def _members(ground: Ground, bucket: str, keys: list[str], folder: Path) -> int:
    """Files in the archives, as tar itself lists them."""
    fetched, count = folder / "fetched.tar.zst", 0
    for key in keys:
        ground.swift.client().download_file(bucket, key, str(fetched))
        command = ["tar", "--zstd", "-tf", str(fetched)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        count += sum(not name.endswith("/") for name in listed.splitlines())
    return count


def _empty(ground: Ground, bucket: str) -> None:
    client = ground.swift.client()
    for key in _objects(ground, bucket):
        client.delete_object(Bucket=bucket, Key=key)
    client.delete_bucket(Bucket=bucket)
