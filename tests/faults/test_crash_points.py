"""kill -9 behind every durable step there is: afterwards every message is in one archive.

The scenario starts from what other killed processes left (`RESIDUE`) and goes the whole way: drain,
seal, recovery, packing with one failure, upload, removal. Each case kills it at a step, kills the
next process somewhere in its own recovery, lets the third one finish, and reads the archives by
tarfile and zstandard alone.
"""

from __future__ import annotations

import io
import random
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import zstandard

from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.disk.crash_points import CrashPoint
from fuploader_dagster.health.balance import balance
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import receipts_between
from tests.crashes import EVERY_HIT, RESIDUE, Kill, Lives, copied
from tests.drains import backlog, files, publish, publish_bodies
from tests.lives import committed, large_files, settings_in, unacknowledged
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer

POISON = [b"poison %d" % number for number in range(8)]
ELSEWHERE = {
    *(CrashPoint.REJECTED, CrashPoint.UPLOAD_BEGUN, CrashPoint.PART_STORED),
    *(CrashPoint.MENDING_NOTED, CrashPoint.REPLACED),
    *(CrashPoint.PIECES_SYNCED, CrashPoint.PIECE_NAMED),
    *(CrashPoint.DIVIDED, CrashPoint.PIECE_REMOVED),
    *(CrashPoint.PROCESSING_BEGUN, CrashPoint.OUTCOMES_KEPT),
    *(CrashPoint.OUTCOMES_CUT, CrashPoint.ITEM_FOLDERS_REMOVED, CrashPoint.PROCESSED),
    *(CrashPoint.PROCESSED_REMOVED, CrashPoint.REDO_BEGUN, CrashPoint.REDO_REMOVED),
    *(CrashPoint.OWED_NOTED, CrashPoint.ROWS_STORED, CrashPoint.ROWS_RECEIPT_KEPT),
    *(CrashPoint.OWED_CLEARED, CrashPoint.LETTER_STORED),
    *(CrashPoint.TASK_ENDED, CrashPoint.NOTICE_SENT),
    *(CrashPoint.NOTICE_NOTED, CrashPoint.NOTICES_CLOSED),
}
"""Steps that only a broker, a cloud, or a damaged, divided or processed slot has: these have tests
of their own."""
HERE = [step for step in CrashPoint if step not in ELSEWHERE]


@pytest.fixture(scope="module")
def residue(lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a full queue, and everything that killed processes can leave."""
    folder = tmp_path_factory.mktemp("residue")
    settings = settings_in(folder)
    publish(settings, dict(list(published().items())[:40]))
    publish_bodies(settings, POISON)
    publish(settings, dict(list(published().items())[40:]))
    for life, kill in RESIDUE.items():
        assert (lives.live(life, folder, kill) is None) == (kill is not None)
    return folder


@pytest.fixture(scope="module")
def unharmed(lives: Lives, residue: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All the steps of the scenario when nobody kills it."""
    folder = copied(residue, tmp_path_factory.mktemp("unharmed"))
    steps = lives.live("whole", folder)
    assert steps is not None
    assert_everything_is_stored_once(settings_in(folder))
    return steps


def published() -> dict[str, bytes]:
    return {**files(64), **unacknowledged()}


def test_the_scenario_does_every_step_that_needs_no_broker_and_no_cloud(
    unharmed: list[str],
) -> None:
    assert {step.name for step in HERE} - set(unharmed) == set()


@pytest.mark.parametrize("step", HERE, ids=lambda step: step.name)
def test_killed_behind_a_step_nothing_is_lost_doubled_or_left_behind(
    step: CrashPoint, lives: Lives, residue: Path, unharmed: list[str], tmp_path: Path
) -> None:
    hits = unharmed.count(step.name)
    one = random.Random(step.name).randint(1, hits)
    for hit in range(1, hits + 1) if EVERY_HIT else [one]:
        folder = copied(residue, tmp_path / str(hit))
        assert lives.live("whole", folder, {"step": step.name, "hit": hit}) is None
        again = random.Random(f"{step.name} {hit}").randrange(1, 60)
        lives.live("whole", folder, {"step": None, "hit": again})
        assert lives.live("whole", folder) is not None
        assert_everything_is_stored_once(settings_in(folder), f"{step.name} {hit}, then {again}")


def assert_everything_is_stored_once(settings: Pipeline, case: str = "") -> None:
    """Every message in one archive or among the dead letters, and nothing left anywhere else."""
    wanted = {**published(), **committed()}
    found = archived(settings)
    copies = Counter({name: len(contents) for name, contents in found.items()})
    assert wanted.keys() == found.keys(), case
    assert [name for name, count in copies.items() if count > 1] == [], case
    assert found == {name: [content] for name, content in wanted.items()}, case
    assert sorted(letter.body for letter in read_dead_letters(settings.layout)) == POISON, case
    with sqlite3.connect(settings.storage_root.parent / "queue" / "queue.sqlite") as queue:
        assert queue.execute("SELECT count(*) FROM messages").fetchone() == (0,), case
    receipts = receipts_between(settings.layout)
    assert sorted(receipts) == sorted(
        path.name.removesuffix(".tar.zst") for path in objects(settings).rglob("*.tar.zst")
    )
    state = settings.state.store(pipeline=settings.name, node=settings.node)
    state.open()
    assert set(state.sealed(1000)) <= set(receipts), case
    assert state.snapshot().owners == {}, case
    found = balance(settings.layout, state.snapshot())
    assert (found.lost, found.total("stored")) == ([], found.sealed_messages), case
    state.close()
    assert_nothing_is_left(settings, case)


def assert_nothing_is_left(
    settings: Pipeline, case: str, known: Mapping[str, bytes] | None = None
) -> None:
    """`known`: what an interrupted commit may have left in set-aside/."""
    root = settings.layout.root
    kept = {"receipts", "locks", "dead-letters", "set-aside", "shipped", "workers", "seal-log"}
    kept.add("suspects")  # empty between two attempts
    kept.add("epochs")
    left = [
        path.relative_to(root)
        for path in root.rglob("*")
        if path.is_file()
        and path.relative_to(root).parts[0] not in kept
        and not is_empty_directory_of_its_slot(path.parent)
    ]
    expected = {"root-id", "catalog.sqlite", "catalog.sqlite.lock", "seal-request"}
    assert [str(p) for p in left if p.name not in {*expected, "next-number"}] == [], case
    assert [path for path in root.glob("suspects/w*") if path.stat().st_size] == [], case
    temporary = [*root.rglob(".tmp-*"), *objects(settings).rglob(".tmp-*")]
    assert temporary == [], case
    known = known or {**published(), **committed()}
    for path in settings.layout.set_aside.iterdir() if settings.layout.set_aside.exists() else ():
        assert path.read_bytes() in [*known.values(), b""], case


def is_empty_directory_of_its_slot(directory: Path) -> bool:
    """Opened, and nothing committed in it: the slot's next messages come there."""
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    return directory.parts[-3:-2] == ("active",) and sizes == {"index": 16, "segment.tar": 0}


def objects(settings: Pipeline) -> Path:
    return settings.storage_root.parent / "objects"


def archived(settings: Pipeline) -> dict[str, list[bytes]]:
    """What the archives hold, read by zstandard and tarfile."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(objects(settings).rglob("*.tar.zst")):
        with path.open("rb") as file:
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            tar = io.BytesIO(reader.read())
        with tarfile.open(fileobj=tar) as members:
            for member in members:
                content = members.extractfile(member)
                assert content is not None
                found.setdefault(member.name, []).append(content.read())
    return found


AROUND_AN_ACK = [
    CrashPoint.DEAD_LETTERS_KEPT,
    CrashPoint.INDEX_SYNCED,
    CrashPoint.REJECTED,
    CrashPoint.SETTLED,
    CrashPoint.RECORDED,
    CrashPoint.SEALED,
    CrashPoint.PARTITION_PUSHED,
    CrashPoint.RECEIPT_KEPT,
    CrashPoint.SLOT_REMOVED,
]


def test_killed_around_its_acks_to_rabbitmq_everything_is_there_once(
    lives: Lives, rabbitmq: RabbitMQServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    servers = {"rabbitmq": rabbitmq.url, "redis": redis_server.url(), "queue": new_queue(rabbitmq)}
    settings = settings_in(tmp_path, servers=servers)
    wanted: dict[str, bytes] = {}
    poison: set[bytes] = set()
    for number, step in enumerate(AROUND_AN_ACK):
        contents = files(60, seed=number, prefix=f"{number}-")
        bad = [b"poison %d-%d" % (number, each) for each in range(6)]
        publish(settings, dict(list(contents.items())[:30]))
        publish_bodies(settings, bad)
        publish(settings, dict(list(contents.items())[30:]))
        wanted |= contents
        poison |= set(bad)
        assert lives.live("whole", tmp_path, {"step": step.name, "hit": 1}, servers=servers) is None
    for _ in range(10):  # the broker may take a moment to hand out again what a dead one held
        assert lives.live("whole", tmp_path, servers=servers) is not None
        if archived(settings).keys() == wanted.keys():
            break
    assert archived(settings) == {name: [content] for name, content in wanted.items()}
    assert sorted(letter.body for letter in read_dead_letters(settings.layout)) == sorted(poison)
    assert backlog(settings) == 0
    assert_nothing_is_left(settings, "")


def test_killed_between_the_parts_of_an_upload_it_goes_on_and_leaves_no_part_behind(
    lives: Lives, swift: SwiftServer, tmp_path: Path
) -> None:
    bucket = swift.fresh_bucket()
    cloud = {
        "bucket": bucket,
        "endpoint_url": swift.endpoint,
        "region": swift.region,
        "access_key_id": swift.access_key,
        "part_size_bytes": 5 << 20,
        "concurrency": 1,
    }

    def lived(life: str, kill: Kill | None = None) -> list[str] | None:
        secret = {"CLOUD_SECRET": swift.secret_key}
        return lives.live(life, tmp_path, kill, environment=secret, cloud=cloud)

    assert lived("large") is not None
    assert lived("whole", {"step": CrashPoint.UPLOAD_BEGUN.name, "hit": 1}) is None
    assert lived("whole", {"step": CrashPoint.PART_STORED.name, "hit": 2}) is None
    steps = lived("whole")
    assert steps is not None
    assert steps.count(CrashPoint.PART_STORED.name) <= 1  # of three: two were there
    assert steps.count(CrashPoint.UPLOAD_ABORTED.name) == 1
    client = swift.client()
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    (stored,) = client.list_objects_v2(Bucket=bucket)["Contents"]
    target = tmp_path / "objects" / "large.tar.zst"
    target.parent.mkdir()
    client.download_file(bucket, stored["Key"], str(target))
    settings = settings_in(tmp_path)
    assert archived(settings) == {name: [content] for name, content in large_files().items()}
    assert_nothing_is_left(settings, "")


@pytest.mark.parametrize(("life", "lost"), [("rotten", 1), ("unsealed", 0)])
def test_killed_while_a_damaged_slot_is_mended_what_it_proves_is_stored_once(
    life: str, lost: int, lives: Lives, tmp_path: Path
) -> None:
    """Behind every step of it: nothing twice, nothing lost, and the damaged slot is set aside."""
    contents = files(3, prefix="rotten")
    made = tmp_path / "made"
    made.mkdir()
    assert lives.live(life, made) is not None
    (sealed,) = settings_in(made).layout.sealed_dirs()
    segment = (sealed / "segment.tar").read_bytes()
    proven = dict(contents)
    for name in list(contents)[1 : 1 + lost]:
        del proven[name]
    steps = lives.live("whole", copied(made, tmp_path / "unharmed"))
    assert steps is not None
    assert {"MENDING_NOTED", "REPLACED", "SET_ASIDE"} <= set(steps)
    begin, end = steps.index("MENDING_NOTED"), steps.index("SET_ASIDE")
    for hit in [*range(begin - 4, end + 4), len(steps)]:
        folder = copied(made, tmp_path / str(hit))
        settings = settings_in(folder)
        assert lives.live("whole", folder, {"step": None, "hit": hit}) is None
        again = random.Random(f"{life} {hit}").randrange(1, 60)
        lives.live("whole", folder, {"step": None, "hit": again})
        for _ in range(2):
            assert lives.live("whole", folder) is not None
        assert archived(settings) == {name: [content] for name, content in proven.items()}, hit
        assert settings.layout.sealed_dirs() == [], hit
        (aside,) = settings.layout.set_aside.iterdir()
        assert (aside / "segment.tar").read_bytes() == segment, hit
        assert not list(settings.layout.root.rglob(".tmp-*")), hit
