"""Folders that vanish under a drain: what was acknowledged is found by its name, and two drains
never write one slot, whatever somebody removes, renames or mounts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.settings.pipeline import Intake
from tests.drains import (
    MARK,
    assert_exactly_once,
    backlog,
    draining,
    files,
    publish,
    publish_bodies,
    snapshot,
    stored,
    wait_for,
    wait_until_stored,
)
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.small_disks import mounted
from tests.settings import intake


def on_rabbitmq(
    folder: Path, rabbitmq: RabbitMQServer, queue_type: str = "quorum", **values: object
) -> Intake:
    source = RabbitMQ(url=rabbitmq.url, queue=new_queue(rabbitmq, queue_type))
    return intake(folder, source=source, min_free_bytes=MARK, **values)


def remove(path: Path) -> None:
    """`rm -rf`, again where a worker has just made something in it."""
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)


WAYS: dict[str, Callable[[Layout], object]] = {
    "the storage root removed": lambda layout: remove(layout.root.parent),
    "the storage root renamed": lambda layout: layout.root.parent.rename(
        layout.root.parent.with_name("elsewhere")
    ),
    "active removed": lambda layout: remove(layout.root / "active"),
    "the directory renamed": lambda layout: layout.active(0, 1).rename(layout.root / "elsewhere"),
}


def until_settled(settings: Intake, count: int) -> None:
    """So many messages are stored, acknowledged and counted."""
    wait_for(
        lambda: backlog(settings) == 0 and snapshot(settings).stored_messages == count,
        settings,
        "the acknowledgement",
    )


@pytest.mark.parametrize("way", WAYS)
def test_what_is_acknowledged_after_a_folder_vanished_is_found_by_its_name(
    tmp_path: Path, rabbitmq: RabbitMQServer, way: str
) -> None:
    settings = on_rabbitmq(tmp_path, rabbitmq)
    before, after = files(20, prefix="before-"), files(300, seed=2, prefix="after-")
    with draining(settings):
        publish(settings, before)
        wait_until_stored(settings, before)
        until_settled(settings, len(before))
        WAYS[way](settings.layout)
        publish(settings, after)
        wait_until_stored(settings, after)
    assert_exactly_once(settings, after)


def test_what_is_acknowledged_after_a_disk_was_mounted_over_the_folder_is_on_that_disk(
    tmp_path: Path, rabbitmq: RabbitMQServer
) -> None:
    settings = on_rabbitmq(tmp_path, rabbitmq)
    before, after = files(20, prefix="before-"), files(300, seed=2, prefix="after-")
    with draining(settings):
        publish(settings, before)
        wait_until_stored(settings, before)
        until_settled(settings, len(before))
        with mounted(settings.storage_root, "-t", "tmpfs", "fuploader-test"):
            publish(settings, after)
            wait_until_stored(settings, after)
            until_settled(settings, len(before) + len(after))
            on_the_disk = stored(settings.layout)
        wait_for(lambda: stored(settings.layout) >= before.keys(), settings, "the disk below")
    assert on_the_disk == after.keys()


def test_a_dead_letter_is_acknowledged_only_if_it_is_found_by_its_name(
    tmp_path: Path, rabbitmq: RabbitMQServer
) -> None:
    settings = on_rabbitmq(tmp_path, rabbitmq, queue_type="classic")
    first = files(20)
    with draining(settings):
        publish(settings, first)
        wait_until_stored(settings, first)
        until_settled(settings, len(first))
        settings.layout.root.rename(tmp_path / "elsewhere")
        bad = [b"no envelope %d" % number for number in range(50)]
        publish_bodies(settings, bad)
        wait_for(
            lambda: {letter.body for letter in read_dead_letters(settings.layout)} == set(bad),
            settings,
            "the dead letters",
        )
        wait_for(lambda: backlog(settings) == 0, settings, "the acknowledgement")
    assert {letter.body for letter in read_dead_letters(settings.layout)} == set(bad)


def test_a_second_drain_writes_nothing_into_a_slot_whose_lock_file_was_removed(
    tmp_path: Path, rabbitmq: RabbitMQServer
) -> None:
    settings = on_rabbitmq(tmp_path, rabbitmq, prefetch_count=20, commit_messages=10)
    contents = files(50, prefix="before-")
    with draining(settings):
        publish(settings, contents)
        wait_until_stored(settings, contents)
        until_settled(settings, len(contents))
        remove(settings.layout.locks)
        with draining(settings) as second:
            wait_for(
                lambda: any("another process is still writing" in one for one in second.problems()),
                settings,
                "the second drain's problem",
            )
            for part in range(10):
                more = files(100, seed=part, prefix=f"p{part}-")
                publish(settings, more)
                contents |= more
            wait_until_stored(settings, contents)
    assert_exactly_once(settings, contents)
    assert not settings.layout.set_aside.exists()
