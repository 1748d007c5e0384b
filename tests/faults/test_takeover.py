"""The real FUploader, killed, and then we migrate its root, its Redis, its queue and its bucket.

A choice of modes and moments; `python -m tests.former` runs them all.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from fuploader_dagster.errors import SlotInUse
from fuploader_dagster.takeover.run import examine, take_over
from tests.drains import publish_bodies
from tests.former import Former, Mode, Servers, encoded, messages, refuses, take_over_after
from tests.servers.ports import wait_until
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer


@pytest.fixture
def servers(rabbitmq: RabbitMQServer, redis_server: RedisServer, swift: SwiftServer) -> Servers:
    return Servers(rabbitmq, redis_server, swift)


@pytest.mark.parametrize(
    ("mode", "moment"),
    [
        (Mode("legacy_meta", "legacy_meta", "legacy_slot"), "half removed"),
        (Mode("flat_slot", "default", "colon"), "stored"),
        (Mode("legacy_meta", "default", "colon", 2), "any"),
        (Mode("flat_slot", "legacy_meta", "legacy_slot"), "recovering"),
    ],
    ids=str,
)
def test_nothing_is_lost_and_nothing_is_stored_twice_when_fuploader_dies(
    servers: Servers, tmp_path: Path, mode: Mode, moment: str
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    outcome = take_over_after(Former(servers, tmp_path, mode), moment, random.Random(seed))
    assert outcome.refused
    assert (outcome.lost, outcome.doubled) == (0, 0)
    assert (outcome.keys_left, outcome.left_on_disk) == ((), ())


def test_a_fuploader_that_still_runs_is_left_alone_with_all_it_has(
    servers: Servers, tmp_path: Path
) -> None:
    former = Former(servers, tmp_path, Mode())
    settings = former.pipeline()
    directory = former.root / "active/slot-0/dir-000001"
    with former.running():
        wait_until(
            lambda: bool(former.keys()) and directory.is_dir(),
            seconds=120,
            what="FUploader",
            diagnose=(tmp_path / "fuploader.log").read_text,
        )
        (directory / "a.json").write_bytes(b"a")
        assert "uses FUploader's keys" in examine(settings).alive
        with pytest.raises(SlotInUse, match="still works on"):
            take_over(settings)
        assert refuses(settings)
        said = former.migrate()
        assert said.returncode == 3
        assert "stop it" in said.stderr
        assert (directory / "a.json").exists()
        assert former.keys()
    assert former.migrate().returncode == 0
    assert not refuses(settings)
    assert not (former.root / "active").exists()
    assert not former.keys()


def test_uploads_that_fuploader_gave_up_are_taken_over_without_their_archives(
    servers: Servers, tmp_path: Path
) -> None:
    former = Former(servers, tmp_path, Mode(), refuse_uploads=True)
    settings = former.pipeline()
    files = messages(60, random.Random(1))
    publish_bodies(settings.intake(), encoded(files))
    with former.running():
        wait_until(
            lambda: len(list(former.root.glob("sealed/*/2*.tar.zst"))) > 0,
            seconds=120,
            what="an archive that was refused",
            diagnose=lambda: (tmp_path / "fuploader.log").read_text()[-2000:],
        )
        time.sleep(1)
    on_disk = former.on_disk()
    plan = examine(settings)
    assert plan.files == len(on_disk)
    assert plan.remove
    assert not plan.archives
    assert sum(slot.seal.messages for slot in take_over(settings)) == len(on_disk)
    assert not list(former.root.glob("sealed"))
