"""From tasks in a queue to their askers: five at once, with an asker that is dead, and a Redis that
comes back."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from fuploader_dagster import QueueNotices, RedisListNotices, WebhookNotices, run_pipeline
from fuploader_dagster.delivery import notices
from fuploader_dagster.delivery.notice_files import NoticeFiles
from fuploader_dagster.health.alert_look import notice_trouble
from fuploader_dagster.health.doctor import examine
from fuploader_dagster.health.status import status_of
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from tests.drains import MARK, publish_bodies
from tests.notifiers_for_tests import JournalNotices, told, words_of
from tests.processors_for_tests import ScriptWithFolders
from tests.servers.asker import SignedWebhook, popped
from tests.servers.ports import wait_until
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer
from tests.settings import archived_files, pipeline

KEY = "batch_download_resp_{task_id}"
FILES = 100


def task(name: str, files: int = FILES, **more: Any) -> bytes:
    names = [f"{name}-{number:03d}.jpg" for number in range(files)]
    return json.dumps({"task_id": name, "files": names, **more}).encode()


def made(folder: Path, *notify: Any, **values: Any) -> Pipeline:
    return pipeline(
        folder,
        **{
            "source": EmbeddedQueue(path=folder / "queue"),
            "min_free_bytes": MARK,
            "message_format": "json",
            "name_fields": ("task_id",),
            "seal_each": "message",
            "split_by": ["task_id"],
            "key": "tasks/{task_id}/{archive}",
            "process": ScriptWithFolders(concurrency=5),
            "notify": notify,
            **values,
        },
    )


def shipped(settings: Pipeline, *bodies: bytes) -> None:
    publish_bodies(settings, list(bodies))
    found = run_pipeline(settings, until_empty=True)
    assert (found.archives, found.failures) == (len(bodies), ())


@pytest.fixture
def redis_alone(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may stop."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.stop()


def test_five_tasks_of_a_hundred_files_are_told_as_their_askers_expect(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = made(tmp_path, RedisListNotices(url=redis_server.url(), key=KEY))
    heard: dict[str, list[str]] = {}
    names = [f"five{number}" for number in range(5)]

    def listen(name: str) -> None:
        heard[name] = popped(redis_server.client(), name, until="end")

    askers = [threading.Thread(target=listen, args=(name,)) for name in names]
    for asker in askers:
        asker.start()
    shipped(settings, *map(task, names))
    for asker in askers:
        asker.join(300)
    for name in names:
        files = [f"{name}-{number:03d}.jpg" for number in range(FILES)]
        assert heard[name] == ["start", *files, "end"]
        stored = archived_files(tmp_path / "objects" / "tasks" / name)
        assert stored.keys() == {name, *(f"results/{one}" for one in files)}
    assert notice_trouble(settings, time.time()) is None


def test_an_asker_that_never_reads_holds_up_nothing_and_its_list_lapses(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = made(
        tmp_path, RedisListNotices(url=redis_server.url(), key=KEY, expires_seconds=600)
    )
    shipped(settings, task("dead1", 3))
    client = redis_server.client()
    assert client.llen("batch_download_resp_dead1") == 5
    assert 0 < client.ttl("batch_download_resp_dead1") <= 600


def test_a_redis_that_is_down_holds_up_no_archive_and_is_told_when_it_is_back(
    redis_alone: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "FIRST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(notices, "LONGEST_PAUSE_SECONDS", 0.5)
    settings = made(tmp_path, RedisListNotices(url=redis_alone.url(), key=KEY))
    redis_alone.stop()
    shipped(settings, task("down1", 2), task("down2", 2))
    (status,) = status_of(settings)["notices"]
    assert status["waiting_tasks"] == 2
    assert "could not be sent since" in status["trouble"]
    trouble = notice_trouble(settings, time.time())
    assert trouble is not None
    assert "2 tasks wait to be told" in trouble.sentence
    redis_alone.start()

    def everything_is_told() -> bool:
        notices.wake(settings)
        notices.settle(settings)
        return not any(settings.layout.notices.rglob("*.end"))

    wait_until(everything_is_told, seconds=60, what="the notices to be sent", diagnose=str)
    for name in ("down1", "down2"):
        words = ["start", f"{name}-000.jpg", f"{name}-001.jpg", "end"]
        assert popped(redis_alone.client(), name) == words
    assert notice_trouble(settings, time.time()) is None


def test_the_end_says_what_failed_and_where_a_browser_finds_the_archive(
    swift: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", swift.secret_key)
    store = S3(
        bucket=swift.fresh_bucket(),
        endpoint_url=swift.endpoint,
        region=swift.region,
        access_key_id=swift.access_key,
        secret_access_key={"env": "SECRET_OF_THE_TEST"},
    )
    with SignedWebhook() as hook:
        webhook = WebhookNotices(
            url=hook.url, secret=hook.secret, fields=["task_id", "who.name", "none"], on=["end"]
        )
        queue = EmbeddedQueue(path=tmp_path / "told")
        settings = made(tmp_path, webhook, QueueNotices(to=queue, on=["start", "end"]), store=store)
        shipped(settings, task("t1", 2, missing=["lost.jpg"], who={"name": "ann", "age": 7}))
        notices.settle(settings, 60)
    (end,) = hook.taken
    assert (end["event"], end["results"], end["failed"]) == ("end", 2, 1)
    assert end["task"] == {"task_id": "t1", "who.name": "ann"}
    assert end["failures"] == [{"name": "lost.jpg", "reason": "404"}]
    assert end["archive"]["key"].startswith("tasks/t1/")
    with urlopen(end["url"], timeout=60) as answer:  # noqa: S310
        assert len(answer.read()) == end["archive"]["size_bytes"]
    assert hook.secret not in json.dumps(end)
    assert swift.secret_key not in json.dumps(end)
    source = queue.source(prefetch=10)
    source.open()
    events = [json.loads(one.body) for one in source.receive(10, 5)]
    source.close()
    assert [one["event"] for one in events] == ["start", "end"]
    assert [one["task"] for one in events] == [{}, {}], "it asked for none"


def test_what_nobody_takes_is_given_up_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    journal = JournalNotices(path=tmp_path / "journal", give_up_seconds=0.001)
    settings = made(tmp_path, journal)
    (tmp_path / "journal.down").touch()
    shipped(settings, task("t1", 1), task("t2", 1))
    files = NoticeFiles.of(settings.layout, journal)

    def given_up() -> bool:
        notices.wake(settings)
        notices.settle(settings)
        return files.given_up.tasks == 2

    wait_until(given_up, seconds=60, what="two tasks to be given up", diagnose=str)
    assert files.ends() == []
    assert "nobody is told any more of the task" in caplog.text
    (tmp_path / "journal.down").unlink()
    assert told(tmp_path / "journal") == []


def test_a_refused_task_holds_up_no_other_notifier_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "FIRST_PAUSE_SECONDS", 0.1)
    refusing = JournalNotices(path=tmp_path / "refusing")
    other = JournalNotices(path=tmp_path / "other")
    settings = made(tmp_path, refusing, other)
    (tmp_path / "refusing.refuses").touch()
    shipped(settings, task("t1", 1))
    notices.settle(settings, 60)
    words = ["start", "t1-000.jpg", "end"]
    assert words_of(tmp_path / "other", "t1") == words
    (tmp_path / "refusing.refuses").unlink()

    def is_told() -> bool:
        notices.wake(settings)
        notices.settle(settings)
        return words_of(tmp_path / "refusing", "t1") == words

    wait_until(is_told, seconds=60, what="the refused task to be told", diagnose=str)


def test_a_task_without_its_name_is_stored_and_told_to_nobody(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    notifier = RedisListNotices(url=redis_server.url(), key="nameless_{task_id}")
    settings = made(tmp_path, notifier, name_fields=(), split_by={}, key="{archive}")
    shipped(settings, json.dumps({"files": ["a.jpg"]}).encode())
    notices.settle(settings, 60)
    assert NoticeFiles.of(settings.layout, notifier).given_up.tasks == 1
    assert not redis_server.client().keys("nameless*")


def test_without_a_processor_start_and_end_are_told(tmp_path: Path) -> None:
    settings = made(tmp_path, JournalNotices(path=tmp_path / "journal"), process=None)
    shipped(settings, task("t1", 1))
    notices.settle(settings, 60)
    assert words_of(tmp_path / "journal", "t1") == ["start", "end"]


def test_the_doctor_says_whether_anybody_can_be_told(
    redis_alone: RedisServer, tmp_path: Path
) -> None:
    queue = QueueNotices(to=EmbeddedQueue(path=tmp_path / "told"))
    settings = made(tmp_path, RedisListNotices(url=redis_alone.url(), key=KEY), queue)

    def found() -> list[str]:
        return [one.verdict for one in examine(settings) if one.check == "notifier"]

    assert found() == ["good", "good"]
    redis_alone.stop()
    assert found() == ["unreachable", "good"]
