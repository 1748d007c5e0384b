"""State lost while everything runs: Redis, the SQLite file, Dagster's storage.

Disk is the truth: everything is found again from it, and nothing that was handed out (directory
numbers, partition keys, object keys) is handed out again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.drains import (
    MARK,
    backlog,
    draining,
    embedded,
    files,
    pids,
    publish,
    snapshot,
    wait_for,
)
from tests.servers.ports import wait_until
from tests.servers.redis import RedisServer
from tests.settings import archived_files, pipeline
from tests.soak.installation import Installation
from tests.soak.plan import PLAIN, content_of, is_poison, name_of, outgoing
from tests.soak.verdict import members_in

SECONDS = 240.0


def assert_nothing_was_handed_out_twice(layout: Layout) -> None:
    """By the receipts: each partition, object key and directory number stands in one of them."""
    found = receipts(layout)
    keys = [PartitionKey.parse(receipt["partition"]) for receipt in found]
    assert None not in keys
    for used in (
        [receipt["partition"] for receipt in found],
        [receipt["key"] for receipt in found],
        [(key.slot, key.number) for key in keys if key],
    ):
        assert len(used) == len(set(used))


def test_a_state_file_deleted_under_running_workers_is_made_again_and_no_number_comes_twice(
    tmp_path: Path,
) -> None:
    """Again and again, also when all slots were shipped: then no directory tells their numbers."""
    source = EmbeddedQueue(path=tmp_path / "queue")
    whole = pipeline(
        tmp_path,
        source=source,
        process_count=2,
        commit_messages=20,
        seal_messages=60,
        min_free_bytes=MARK,
    )
    settings = whole.intake()
    contents = files(1_200)
    names = list(contents)
    with draining(settings):
        for start in range(0, len(names), 300):
            part = {name: contents[name] for name in names[start : start + 300]}
            publish(settings, part)
            wait_for(lambda: backlog(settings) == 0, settings, "the drain")
            if start % 600:
                ship_all(whole)
            for path in tmp_path.glob("state.sqlite*"):
                path.unlink(missing_ok=True)  # its database may be closed just now
    state = settings.state.store(pipeline=settings.name, node=settings.node)
    on_disk = sealed_partitions(settings.layout)
    with draining(settings):  # whoever starts next gives back what the directories say
        wait_for(lambda: state.sealed(1_000) == on_disk, settings, "the next workers")
    state.close()
    seal_on_request(settings)
    ship_all(whole)
    assert archived_files(tmp_path / "objects") == {name: [contents[name]] for name in names}
    assert_nothing_was_handed_out_twice(settings.layout)


def test_nonsense_in_every_key_of_redis_holds_up_no_message_and_makes_no_absurd_directory(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """No worker dies of it, no tick fails, and the numbers on the disk go on as they would have."""
    state = RedisState(url=redis_server.url(), key_prefix="nonsense")  # type: ignore[arg-type]
    settings = embedded(tmp_path, state=state, commit_messages=10, seal_messages=20)
    contents = files(100)
    prefix = f"nonsense:{{{settings.name}:{settings.node}}}"
    values = ("abc", "9" * 400, "9" * 18, "x y z", "garbage", "")
    with redis_server.client() as client, draining(settings) as supervisor:
        for number, value in enumerate(values):
            for key in ("slots", "highest", "claims"):
                client.hset(f"{prefix}:{key}", mapping={"0": value, "x": value, "7": value})
            client.hset(f"{prefix}:totals", mapping={"stored_messages": value, "evil": value})
            client.zadd(f"{prefix}:sealed", {value: 0})
            names = list(contents)[number * 15 : (number + 1) * 15]
            publish(settings, {name: contents[name] for name in names})
            wait_for(lambda: backlog(settings) == 0, settings, "the drain")
            for worker in pids(settings):  # the next one starts from what Redis says
                os.kill(worker, signal.SIGTERM)
            wait_for(
                lambda gone=worker: pids(settings) - {gone} != set(), settings, "the next worker"
            )
        assert supervisor.problems() == []
        wait_for(lambda: bool(snapshot(settings).owners), settings, "a claim of its own")
    numbers = [number for _, number in settings.layout.sealed_numbers()]
    numbers += settings.layout.active_numbers(0)
    assert 0 < max(numbers) <= len(values) * 3


def ship_all(settings: Pipeline) -> None:
    assert all(isinstance(outcome, Done) for outcome in ship(settings, settings.store.open()))


@pytest.mark.timeout(600)
def test_redis_swapped_and_dagsters_storage_deleted_cost_history_and_no_message(
    tmp_path: Path,
) -> None:
    """In a pipeline as users run it. Redis is flushed, then comes back empty; then the instance's
    storage goes, with slots that are registered and slots that are not."""
    with Installation(
        tmp_path / "soak", seal_messages=100, seal_age_seconds=4, recovery_base_seconds=5
    ) as parts:
        published: dict[int, bytes] = {}
        more(parts, published)
        wait(lambda: bool(receipts(parts.layout)), "the first archive", parts)
        parts.redis.flush()
        more(parts, published)
        parts.kept["redis"].bring_down(lambda: lose_redis(parts), 0)
        more(parts, published)
        wait(lambda: sealed_partitions(parts.layout) != [], "a slot that is not shipped", parts)
        parts.kept["daemon"].bring_down(lambda: lose_dagsters_storage(parts), 1)
        wait(parts.up, "the next daemon", parts)
        more(parts, published)
        wait(lambda: stored(parts.layout) >= len(published), "everything to be stored", parts)
        found = [
            (name, content) for _, name, content in members_in(parts.s3.client(), parts.bucket)
        ]
        assert sorted(found) == sorted((name_of(n), content) for n, content in published.items())
        assert_nothing_was_handed_out_twice(parts.layout)


def more(parts: Installation, published: dict[int, bytes]) -> None:
    """Publish some hundred messages."""
    numbers = [
        n for n in range(len(published) * 2, len(published) * 2 + 350) if not is_poison(1, n)
    ]
    publisher = parts.queues.publisher()
    publisher.publish([outgoing(1, number)._replace(queue=PLAIN) for number in numbers])
    publisher.close()
    published.update({number: content_of(1, number) for number in numbers})


def lose_redis(parts: Installation) -> None:
    parts.redis.kill()
    parts.redis.empty()


def lose_dagsters_storage(parts: Installation) -> None:
    """Both start after it is there anew: Dagster has trouble when two processes make it at once."""
    project = parts.folder / "project"

    def replace_storage() -> None:
        parts.code_server.kill()
        shutil.rmtree(project / ".dagster")
        make = "import dagster; dagster.DagsterInstance.from_config('.').dispose()"
        subprocess.run([sys.executable, "-c", make], cwd=project, check=True)
        assert (project / ".dagster").is_dir()

    parts.daemon.kill()
    parts.kept["code_server"].bring_down(replace_storage, 1)


def receipts(layout: Layout) -> list[dict[str, Any]]:
    paths = sorted(layout.receipts.glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines() if line]


def stored(layout: Layout) -> int:
    return sum(receipt["messages"] for receipt in receipts(layout))


def wait(met: Callable[[], bool], what: str, parts: Installation) -> None:
    def left() -> str:
        return f"{stored(parts.layout)} messages have receipts; logs are in {parts.folder}"

    wait_until(met, seconds=SECONDS, what=what, diagnose=left)
