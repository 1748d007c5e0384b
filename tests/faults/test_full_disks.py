"""Full and failing disks, for real: nothing is lost, the drain says what is wrong and goes on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from fuploader_dagster.cli import app
from fuploader_dagster.dead_letters.letters import DeadLetterBox, read_dead_letters
from fuploader_dagster.delivery.attempts import Failed
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.errors import DiskFull
from fuploader_dagster.intake.supervisor import supervisor_for
from fuploader_dagster.intake.worker import Job
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.sensors.drain_sensor import DrainTrouble
from fuploader_dagster.settings.loading import dump_intake, load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.index import read_index
from fuploader_dagster.slots.segment import SegmentWriter
from fuploader_dagster.slots.slot import SlotOwner
from tests.drains import (
    assert_exactly_once,
    backlog,
    draining,
    embedded,
    files,
    on_servers,
    publish,
    stored,
    wait_for,
    wait_until_handled,
    wait_until_stored,
)
from tests.servers.process import binary
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.small_disks import (
    MIB,
    PAGE_BYTES,
    enlarge,
    fill,
    make_room,
    small_disk,
    thin_disk,
)
from tests.settings import archived_files, embedded_parts, pipeline
from tests.ticking import Ticking
from tests.unit.dead_letters.test_letters import letter

ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with small_disk(tmp_path / "disk", size_bytes=8 * MIB) as place:
        yield place


def configured(folder: Path, **values: Any) -> tuple[Path, Pipeline]:
    """A configuration file, and the pipeline in it."""
    path = folder / "fuploader.yaml"
    parts = embedded_parts(folder)
    path.write_text(yaml.safe_dump({"pipelines": {"docs": {**parts, **values}}}))
    return path, load_pipelines(path)["docs"]


def trouble(ticking: Ticking) -> str:
    """What a tick says that keeps the workers from draining."""
    try:
        ticking.accept(ticking.tick())
    except DrainTrouble as said:
        return str(said)
    return ""


def test_at_each_mark_the_drain_pauses_says_why_leaves_the_queue_alone_and_goes_on_by_itself(
    tmp_path: Path,
) -> None:
    mark = 8 * MIB
    with small_disk(tmp_path / "disk", size_bytes=32 * MIB, inodes=300) as place:
        config, settings = configured(
            tmp_path,
            storage_root=str(place / "data"),
            min_free_bytes=mark,
            min_free_inodes=100,
            max_unshipped_bytes=2 * MIB,
            seal_bytes=MIB,
            commit_messages=50,
        )
        ticking = Ticking(settings)
        published, store = 0, settings.store.open()

        def drains() -> bool:
            return not trouble(ticking) and any(
                one.doing == "draining" for one in read_statuses(settings.layout)
            )

        def pauses(sentence: str) -> None:
            """The tick and `status` say it; new messages stay in the queue, in no worker's hand."""
            nonlocal published
            wait_for(lambda: sentence in trouble(ticking), settings, sentence)
            publish(settings, files(10, seed=published, prefix=f"p{published}-"))
            published += 10
            time.sleep(2)
            assert backlog(settings) == 10
            said = CliRunner().invoke(app.app, ["status", "--json", "--config", str(config)])
            (found,) = msgspec.json.decode(said.stdout)
            assert [one["doing"] for one in found["workers"]] == ["paused"]
            assert sentence in found["workers"][0]["problem"]
            assert "messages wait in the queue" in found["workers"][0]["problem"]
            shown = CliRunner().invoke(app.app, ["status", "--config", str(config)]).stdout
            assert "are not in the object store yet" in shown

        def goes_on() -> None:
            wait_for(drains, settings, "the drain")
            wait_for(lambda: backlog(settings) == 0, settings, "what waited in the queue")

        try:
            wait_for(drains, settings, "the drain")
            fill(place, leave_bytes=mark - PAGE_BYTES)
            pauses(f"min_free_bytes ({mark:,}) and resumes at {mark + mark // 10:,}: free some")
            fill(place, leave_bytes=mark + mark // 20)
            time.sleep(3)
            assert "min_free_bytes" in trouble(ticking)
            make_room(place)
            goes_on()

            while (left := os.statvfs(place).f_favail) > 95:
                (place / f"small-{left}").touch()
            pauses("min_free_inodes (100) and resumes at 110: remove small files")
            for path in place.glob("small-*"):
                path.unlink()
            goes_on()

            contents = files(2_000, prefix="large")
            published += len(contents)
            publish(settings, contents)
            wait_for(lambda: "not in the object store" in trouble(ticking), settings, "the backlog")
            waiting = backlog(settings)
            assert 0 < waiting < len(contents)
            time.sleep(2)
            assert backlog(settings) == waiting

            def drained_to_the_end() -> bool:
                assert not any(isinstance(one, Failed) for one in ship(settings, store))
                return backlog(settings) == 0 and drains()

            wait_for(drained_to_the_end, settings, "the end of the backlog")
        finally:
            supervisor_for(settings.intake()).stop()
        wait_until_handled(settings, published)


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_a_disk_that_fills_up_in_a_batch_loses_nothing_and_stores_nothing_twice(
    disk: Path, tmp_path: Path, slot_format: str, request: pytest.FixtureRequest
) -> None:
    servers = (
        on_servers(request.getfixturevalue("rabbitmq"), request.getfixturevalue("redis_server"))
        if slot_format == "segment"
        else {"source": EmbeddedQueue(path=tmp_path / "queue")}
    )
    settings = pipeline(
        tmp_path,
        **{
            **servers,
            "storage_root": disk / "data",
            "slot_format": slot_format,
            "min_free_bytes": 0,
            "min_free_inodes": 0,
            "seal_messages": 1_500,
        },
    )
    contents = files(8_000)
    publish(settings, contents)
    store = settings.store.open()
    with draining(settings.intake()) as supervisor:
        wait_for(lambda: "disk" in "".join(supervisor.problems()), settings, "the full disk")
        wait_for(lambda: read_statuses(settings.layout)[0].doing == "paused", settings, "a pause")
        (problem,) = supervisor.problems()
        assert "bytes that are not free yet: free some space" in problem
        committed = len(stored(settings.layout))
        assert 0 < committed < len(contents)
        wait_for(
            lambda: backlog(settings) + committed == len(contents), settings, "what was given back"
        )
        outcomes = list(ship(settings, store))  # there is no room for archives either
        errors = [one.error for one in outcomes if isinstance(one, Failed)]
        assert len(errors) == len(outcomes) > 0
        assert all("no space left" in error for error in errors), errors
        assert archived_files(settings.layout.archives) == {}
        enlarge(disk, size_bytes=64 * MIB)
        wait_until_stored(settings, contents)
        wait_for(lambda: backlog(settings) == 0, settings, "the last acknowledgement")
        wait_for(lambda: supervisor.problems() == [], settings, "the all-clear")
    seal_on_request(settings)
    assert not any(isinstance(one, Failed) for one in ship(settings, store))
    assert archived_files(tmp_path / "objects") == {n: [body] for n, body in contents.items()}
    assert not settings.layout.set_aside.exists()


def test_a_seal_that_finds_no_room_is_made_when_there_is_some(disk: Path, tmp_path: Path) -> None:
    settings = pipeline(tmp_path, storage_root=disk / "data")
    with SlotOwner(settings, 0) as slot:
        slot.add("a", b"content")
        slot.commit()
        fill(disk)
        with pytest.raises(DiskFull, match=r"no space left while writing .*seal\.json"):
            slot.seal("request")
    with pytest.raises(DiskFull), SlotOwner(settings, 0) as slot:
        slot.seal("request")
    make_room(disk)
    with SlotOwner(settings, 0) as slot:
        one = slot.seal("request")
    assert one is not None
    assert sorted(path.name for path in one.directory.iterdir()) == [
        "index",
        "seal.json",
        "segment.tar",
    ]
    assert [entry.name for entry in one.entries()] == ["a"]


def test_dead_letters_that_find_no_room_are_written_once_when_there_is_some(disk: Path) -> None:
    settings = embedded(disk)
    box = DeadLetterBox(settings.layout, 0)
    letters = [letter(os.urandom(3_000)) for _ in range(20)]
    box.keep(letters[:1])
    fill(disk, leave_bytes=5 * PAGE_BYTES)
    for _ in range(2):
        with pytest.raises(DiskFull, match="dead-letters"):
            box.keep(letters[1:])
    make_room(disk)
    box.keep(letters[1:])
    assert list(read_dead_letters(settings.layout)) == letters


LONG_NAMES = [f"{number:03d}" + "n" * 240 for number in range(300)]
ROOM_BYTES = 123 * PAGE_BYTES
"""Empty messages of these names take 113 pages of a segment and 21 of its index: with that much
room left the data is synced and its records are not."""


def commit_names(writer: SegmentWriter, names: list[str]) -> None:
    for name in names:
        writer.add(name, b"", hashlib.sha256(b"").digest())
    writer.commit()


def names_in(directory: Path) -> list[str]:
    return [one.name for one in read_index((directory / "index").read_bytes()).entries]


def test_an_index_that_finds_no_room_is_cut_back_and_its_messages_are_taken_again(
    disk: Path, tmp_path: Path
) -> None:
    settings = pipeline(tmp_path, storage_root=disk / "data")
    with SlotOwner(settings, 0) as slot:
        slot.add("first", b"")
        slot.commit()
        fill(disk, leave_bytes=ROOM_BYTES)
        for name in LONG_NAMES:
            slot.add(name, b"")
        with pytest.raises(DiskFull):
            slot.commit()
    make_room(disk)
    with SlotOwner(settings, 0) as slot:
        assert slot.count.messages == 1  # a commit counts whole or not at all
        for name in LONG_NAMES:  # they come again, as they were not acknowledged
            slot.add(name, b"")
        one = slot.seal("request")
    assert one is not None
    assert [entry.name for entry in one.entries()] == ["first", *LONG_NAMES]


def test_what_counts_as_committed_after_a_failed_sync_is_on_the_disk(tmp_path: Path) -> None:
    with thin_disk(tmp_path) as disk:
        with disk.mounted() as root:
            directory = root / "dir-000001"
            writer = SegmentWriter(directory)
            writer.open(lambda _: None)
            commit_names(writer, ["first"])
            disk.starve(leave_bytes=ROOM_BYTES)
            with pytest.raises(DiskFull):
                commit_names(writer, LONG_NAMES)
            writer.close()
            assert len(names_in(directory)) == 1 + len(LONG_NAMES)  # in memory, and clean there
            disk.mend()
            again = SegmentWriter(directory)
            kept = [entry.name for entry in again.open(lambda _: None)]
            again.close()
        with disk.mounted():
            assert names_in(directory) == kept
            reader = SegmentWriter(directory)
            assert [entry.name for entry in reader.open(lambda _: None)] == kept
            reader.close()


@pytest.mark.parametrize("when", [3, 4])
def test_a_disk_that_fails_to_sync_is_a_pause_and_its_batch_is_stored_once(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer, when: int
) -> None:
    """The first two syncs open a directory; the next are of a batch's data and of its index."""
    settings = embedded(tmp_path, **on_servers(rabbitmq, redis_server), commit_messages=50)
    contents = files(500)
    publish(settings, contents)
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        worker = subprocess.Popen(
            [
                binary("strace", package="strace"),
                *("-f", "-o", os.devnull, "-e", f"inject=fdatasync:error=EIO:when={when}"),
                *(sys.executable, "-m", "fuploader_dagster.intake.worker"),
            ],
            stdin=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
        )
    assert worker.stdin is not None
    job = Job(0, 60, [str(ROOT)], 2, msgspec.Raw(dump_intake(settings)))
    worker.stdin.write(msgspec.json.encode(job) + b"\n")
    worker.stdin.flush()
    wait_until_stored(settings, contents)
    wait_for(lambda: backlog(settings) == 0, settings, "the last acknowledgement")
    worker.stdin.close()
    assert worker.wait(60) == 0
    said = log.read_text()
    assert "draining paused for" in said
    assert "Input/output error (look at the kernel's log" in said
    assert_exactly_once(settings, contents)
