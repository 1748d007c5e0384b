"""What a process does in the tests that kill it: lives of a pipeline, and what they leave."""

from __future__ import annotations

import io
import os
import random
import sqlite3
import tarfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import zstandard

from fuploader_dagster.delivery import recovery
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.recovery import seal_abandoned, seal_on_request
from fuploader_dagster.delivery.redo import redo_partitions
from fuploader_dagster.delivery.ship import mend_unreadable, pack_partitions, upload_partitions
from fuploader_dagster.disk.layout import REDO_MARK
from fuploader_dagster.intake.drain import Drain
from fuploader_dagster.intake.lease import Lease
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.kafka.settings import Kafka
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.index import INDEX_NAME, read_index
from fuploader_dagster.slots.receipts import receipts_between
from fuploader_dagster.slots.sealing import SEAL_NAME, sealed_partitions
from fuploader_dagster.slots.segment import SEGMENT_NAME
from fuploader_dagster.slots.slot import SlotOwner
from tests.drains import MARK, backlog, files
from tests.processors_for_tests import Script, ScriptWithFolders, script
from tests.settings import pipeline

LONG_AFTER = 2.0**32
"""When everything that waits for its time is due."""


def settings_in(folder: Path, **values: Any) -> Pipeline:
    """A pipeline in a folder: two slots, small batches and slots, embedded parts unless given."""
    values = dict(values)
    if servers := values.pop("servers", None):
        queue = servers["queue"]
        values["source"] = RabbitMQ(url=servers["rabbitmq"], queue=queue, reject_dead_letters=True)
        values["state"] = RedisState(url=servers["redis"], key_prefix=queue)
    if kafka := values.pop("kafka", None):
        values["source"] = Kafka(**kafka)
    if cloud := values.pop("cloud", None):
        values["store"] = S3(**cloud, secret_access_key={"env": "CLOUD_SECRET"})
    return pipeline(
        folder,
        **{
            "source": EmbeddedQueue(path=folder / "queue"),
            "slots_per_worker": 2,
            "commit_messages": 8,
            "prefetch_count": 16,
            "seal_messages": 24,
            "upload_threads": 1,
            "compression_level": 1,
            "min_free_bytes": MARK,
            "residue_file_upload": True,
            **values,
        },
    )


def whole(settings: Pipeline) -> None:
    """Drain the queue, and ship everything, as worker, schedules and runs do it between them."""
    drain(settings)
    state = settings.state.store(pipeline=settings.name, node=settings.node)
    state.open()
    state.add_sealed([slot.seal.partition for slot in seal_abandoned(settings)])
    state.add_sealed([slot.seal.partition for slot in seal_on_request(settings)])
    state.close()
    recovery.apply(plan_of(settings), settings)
    mend_unreadable(settings)
    store = settings.store.open()
    if waiting := sealed_partitions(settings.layout):
        broken = settings.model_copy(update={"packer": fail_to_pack})
        list(pack_partitions(waiting[:1], broken))
        list(pack_partitions(waiting[:1], settings.model_copy(update={"packer": pack_by_hand})))
    for _ in range(2):  # a slot that replaces a damaged one comes with the next plan
        list(upload_partitions(plan_of(settings).ask, settings, store))
    later = datetime.now(tz=timezone.utc) + timedelta(hours=2)
    recovery.abort_unneeded_uploads(settings, store, later)


def plan_of(settings: Pipeline) -> recovery.Plan:
    return recovery.plan(recovery.look(settings), settings, busy=[], now=LONG_AFTER)


def drain(settings: Pipeline) -> None:
    """One worker, until the queue is empty."""
    source = settings.source.source(prefetch=settings.prefetch_count)
    source.named("worker-0")
    Drain(
        settings,
        0,
        source=source,
        state=settings.state.store(pipeline=settings.name, node=settings.node),
        lease=UntilEmpty(settings),
    ).run()


class UntilEmpty(Lease):
    """A lease that is over when everything in the queue is settled, and not before the slots were
    taken up once.
    """

    def __init__(self, settings: Pipeline) -> None:
        self._reader, self._writer = os.pipe()
        super().__init__(self._reader)
        self.renew(120)
        self._settings = settings
        self._looked_empty_at = self._look_again_at = 0.0

    def over(self) -> str:
        if self.in_hand and self._all_settled():
            self.end("the queue is empty")
        return super().over()

    def _all_settled(self) -> bool:
        source = self._settings.source
        if time.monotonic() < self._look_again_at:
            return False
        if isinstance(source, EmbeddedQueue):
            with sqlite3.connect(source.path / "queue.sqlite") as database:
                return database.execute("SELECT messages FROM waiting").fetchone() == (0,)
        self._look_again_at = time.monotonic() + 0.1
        if backlog(self._settings):  # it does not count what this worker holds
            self._looked_empty_at = 0.0
        elif not self._looked_empty_at:
            self._looked_empty_at = time.monotonic()
        return 0 < self._looked_empty_at < time.monotonic() - 0.5


def fill(settings: Pipeline, slot: int, contents: dict[str, bytes], seal: bool = False) -> None:
    """Write messages into a slot, as a worker does it."""
    with SlotOwner(settings, slot) as writer:
        for name, content in contents.items():
            writer.add(name, content)
        writer.commit()
        if seal:
            writer.seal("request")


def large(settings: Pipeline) -> None:
    fill(settings, 0, large_files(), seal=True)


def no_key(archive: str) -> str:
    raise ValueError("no key today")


def fail_to_pack(folder: Path) -> Path:
    raise ValueError("no archive today")


def pack_by_hand(folder: Path) -> Path:
    """A user's own packer."""
    made = folder.with_suffix(".tar.zst")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.add(path, path.relative_to(folder))
    made.write_bytes(zstandard.compress(tar.getvalue()))
    return made


def torn_commit(settings: Pipeline) -> None:
    fill(settings, 0, files(3, prefix="torn"))
    fill(settings, 0, unacknowledged())


def torn_commit_of_files(settings: Pipeline) -> None:
    as_files = settings.model_copy(update={"slot_format": "files"})
    fill(as_files, 1, files(3, prefix="files"))
    fill(as_files, 1, unacknowledged())


def abandoned(settings: Pipeline) -> None:
    fill(settings, 2, files(3, prefix="abandoned"))


def interrupted_seal(settings: Pipeline) -> None:
    fill(settings, 3, files(3, prefix="interrupted"), seal=True)


def without_key(settings: Pipeline) -> None:
    fill(settings.model_copy(update={"key": no_key}), 4, files(3, prefix="keyless"), seal=True)


def half_packed(settings: Pipeline) -> None:
    fill(settings, 5, files(3, prefix="half-packed"), seal=True)
    list(
        upload_partitions(sealed_partitions(settings.layout)[-1:], settings, settings.store.open())
    )


def half_stored(settings: Pipeline) -> None:
    fill(settings, 6, files(3, prefix="half-stored"), seal=True)
    list(
        upload_partitions(sealed_partitions(settings.layout)[-1:], settings, settings.store.open())
    )


def not_removed(settings: Pipeline) -> None:
    fill(settings, 7, files(3, prefix="not-removed"), seal=True)
    list(
        upload_partitions(sealed_partitions(settings.layout)[-1:], settings, settings.store.open())
    )


def rotten(settings: Pipeline) -> None:
    """A sealed slot of three messages; a byte of the second changed after it was sealed."""
    fill(settings, 0, files(3, prefix="rotten"), seal=True)
    (slot,) = settings.layout.sealed_dirs()
    entry = read_index((slot / INDEX_NAME).read_bytes()).entries[1]
    with (slot / SEGMENT_NAME).open("r+b") as segment:
        segment.seek(entry.offset + entry.header_bytes)
        segment.write(b"\xff")


def unsealed(settings: Pipeline) -> None:
    """The same, but it is the seal that nobody can read any more."""
    fill(settings, 0, files(3, prefix="rotten"), seal=True)
    (slot,) = settings.layout.sealed_dirs()
    (slot / SEAL_NAME).write_bytes(b"{")


def to_process(settings: Pipeline) -> None:
    """Two sealed slots of items that say what becomes of them."""
    for slot in (0, 1):
        fill(settings, slot, scripted(slot), seal=True)


def scripted(slot: int) -> dict[str, bytes]:
    kinds: list[dict[str, Any]] = [
        {},
        {"results": 3},
        {"results": 0},
        {"bad": "no"},
        {"retries": 1},
        {"name": "shared"},
    ]
    return {f"s{slot}-{n:02d}.json": script(**kinds[n % len(kinds)]) for n in range(30)}


def to_process_into_files(settings: Pipeline) -> None:
    """The same, with results that are files."""
    kinds: list[dict[str, Any]] = [
        {"files": ["a", "b"], "times": 3000},
        {"files": ["c"], "results": 2},
        {"files": []},
        {"bad": "no"},
        {"files": ["d"], "retries": 1},
        {"files": ["a"], "missing": ["x", "y"]},
    ]
    for slot in (0, 1):
        contents = {f"s{slot}-{n:02d}.json": script(**kinds[n % len(kinds)]) for n in range(30)}
        fill(settings, slot, contents, seal=True)


def processing_into_files(settings: Pipeline) -> None:
    """Process all sealed slots with a processor that has folders, and ship them."""
    process_all(settings, ScriptWithFolders(concurrency=3, max_retries=2))


def processing(settings: Pipeline) -> None:
    """Process all sealed slots, and ship them."""
    process_all(settings, Script(concurrency=3, max_retries=2))


def process_all(settings: Pipeline, process: Script) -> None:
    settings = settings.model_copy(update={"process": process, "commit_messages": 4})
    recovery.apply(plan_of(settings), settings)
    partitions = plan_of(settings).ask
    list(process_partitions(partitions, settings))
    list(upload_partitions(partitions, settings, settings.store.open()))


def redoing(settings: Pipeline) -> None:
    """Process all stored archives again that were not yet, with a changed processor."""
    process = Script(concurrency=3, max_retries=2, edition=2)
    settings = settings.model_copy(update={"process": process, "commit_messages": 4})
    recovery.apply(plan_of(settings), settings)
    receipts = receipts_between(settings.layout)
    partitions = [one.partition for one in receipts.values() if REDO_MARK not in one.key]
    open_archive = ArchiveFinder({settings.name: settings}).open
    store = settings.store.open()
    list(redo_partitions(partitions, settings, store, open_archive))
    later = datetime.now(tz=timezone.utc) + timedelta(hours=2)
    recovery.abort_unneeded_uploads(settings, store, later)


def unacknowledged() -> dict[str, bytes]:
    """What a torn commit held: it is still in the queue."""
    return files(8, seed=3, prefix="unacknowledged")


def committed() -> dict[str, bytes]:
    """What the lives of `RESIDUE` committed, and so acknowledged."""
    prefixes = [
        *("torn", "files", "abandoned", "interrupted"),
        *("keyless", "half-packed", "half-stored", "not-removed"),
    ]
    return {name: body for prefix in prefixes for name, body in files(3, prefix=prefix).items()}


def large_files() -> dict[str, bytes]:
    """More than two parts of an upload, however it is compressed."""
    dice = random.Random(5)
    return {f"large{number}.bin": dice.randbytes(4 << 20) for number in range(3)}
