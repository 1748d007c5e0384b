"""The contract on lists of Redis, a webhook and queues, and what only one of them has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster import EmbeddedQueue, QueueNotices, RedisListNotices, WebhookNotices
from fuploader_dagster.contracts.notifier import Notice, NotifierSettings
from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.errors import BadNotice, NotifierRefused, NotifierUnavailable
from fuploader_dagster.testing import NotifierContract
from fuploader_dagster.testing.notifier_contract import Received, notices_of
from tests.servers.asker import SignedWebhook, popped
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

KEY = "batch_download_resp_{task_id}"


def word(content: dict[str, Any]) -> str:
    return str(content["item"]["name"]) if content["event"] == "item" else str(content["event"])


@pytest.fixture
def redis_alone(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may stop."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


class RedisLists(NotifierContract):
    repeats = False

    @pytest.fixture
    def outage(self, redis_alone: RedisServer) -> Any:
        @contextmanager
        def down() -> Iterator[None]:
            redis_alone.stop()
            yield
            redis_alone.start()

        return down()


class TestRedisList(RedisLists):
    @pytest.fixture
    def settings(self, redis_alone: RedisServer) -> NotifierSettings:
        return RedisListNotices(url=redis_alone.url(), key=KEY)

    @pytest.fixture
    def received(self, redis_alone: RedisServer) -> Received:
        return lambda task: popped(redis_alone.client(), task)


class TestRedisListOfJson(RedisLists):
    @pytest.fixture
    def settings(self, redis_alone: RedisServer) -> NotifierSettings:
        return RedisListNotices(url=redis_alone.url(), key=KEY, format="json")

    @pytest.fixture
    def received(self, redis_alone: RedisServer) -> Received:
        return lambda task: [word(json.loads(one)) for one in popped(redis_alone.client(), task)]


@pytest.fixture
def hook() -> Iterator[SignedWebhook]:
    with SignedWebhook() as started:
        yield started


class TestWebhook(NotifierContract):
    @pytest.fixture
    def settings(self, hook: SignedWebhook) -> NotifierSettings:
        return WebhookNotices(url=hook.url, secret=hook.secret, fields=["task_id"])

    @pytest.fixture
    def received(self, hook: SignedWebhook) -> Received:
        return lambda task: [word(one) for one in hook.taken if one["task"]["task_id"] == task]

    @pytest.fixture
    def outage(self, hook: SignedWebhook) -> Any:
        @contextmanager
        def down() -> Iterator[None]:
            hook.stop()
            yield
            hook.start()

        return down()


class Queues(NotifierContract):
    can_be_down = False

    @pytest.fixture
    def settings(self, queue: SourceSettings) -> NotifierSettings:
        return QueueNotices(to=queue, fields=["task_id"])

    @pytest.fixture
    def received(self, queue: SourceSettings) -> Received:
        def taken(task: str) -> list[str]:
            source = queue.source(prefetch=1000)
            source.open()
            found: list[str] = []
            while messages := source.receive(1000, 1.0):
                found += [word(json.loads(one.body)) for one in messages]
            source.close()
            return found

        return taken


class TestEmbeddedQueue(Queues):
    @pytest.fixture
    def queue(self, tmp_path: Path) -> SourceSettings:
        return EmbeddedQueue(path=tmp_path / "queue")


class TestRabbitMQ(Queues):
    @pytest.fixture
    def queue(self, rabbitmq: RabbitMQServer, fresh_queue: Callable[..., str]) -> SourceSettings:
        from fuploader_dagster import RabbitMQ  # noqa: PLC0415

        return RabbitMQ(url=rabbitmq.url, queue=fresh_queue())


def test_the_list_and_what_is_known_of_it_lapse_together(redis_server: RedisServer) -> None:
    settings = RedisListNotices(url=redis_server.url(), key="lapse_{task_id}", expires_seconds=30)
    settings.notifier().send(notices_of("t1", "a"))
    client = redis_server.client()
    assert 0 < client.ttl("lapse_t1") <= 30
    assert 0 < client.ttl("{lapse_t1}:fuploader") <= 30


@pytest.mark.parametrize(
    "value", [None, "", True, 1.5, ["a"], {"a": 1}, "x" * 513, "\ud800", 10**600]
)
def test_a_task_without_a_usable_name_is_told_to_nobody(
    redis_server: RedisServer, value: Any
) -> None:
    settings = RedisListNotices(url=redis_server.url(), key="odd_{task_id}")
    before = redis_server.client().dbsize()
    with pytest.raises(BadNotice, match="task_id"):
        settings.notifier().send([Notice("i", "start", "", {"task_id": value}, {})])
    assert redis_server.client().dbsize() == before


@pytest.mark.parametrize("value", ["a/b", "{x}", "客户", "a b\n", "%s{0.__class__}", 7, "*"])
def test_odd_names_are_part_of_the_key_as_they_are(redis_server: RedisServer, value: Any) -> None:
    settings = RedisListNotices(url=redis_server.url(), key="batch_download_resp_{task_id}")
    settings.notifier().send([Notice(f"{value}", "start", "", {"task_id": value}, {})])
    assert popped(redis_server.client(), str(value)) == ["start"]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("{task_id}", "must begin with a text"),
        ("a_{task_id!r}", "braces may only hold"),
        ("a_{task_id:>9}", "braces may only hold"),
        ("a_{0}", "braces may only hold"),
        ("a_{task_id[0]}", "braces may only hold"),
        ("a_{task.__class__", "braces may only hold"),
        ("a_{}", "braces may only hold"),
    ],
)
def test_a_key_is_no_format_string(key: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RedisListNotices(url="redis://localhost", key=key)


def test_a_key_that_holds_something_else_is_refused(redis_server: RedisServer) -> None:
    redis_server.client().set("taken_t1", "x")
    settings = RedisListNotices(url=redis_server.url(), key="taken_{task_id}")
    with pytest.raises(NotifierRefused, match="name another one"):
        settings.notifier().send(notices_of("t1"))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, NotifierUnavailable),
        (503, NotifierUnavailable),
        (429, NotifierUnavailable),
        (302, NotifierRefused),
        (404, NotifierRefused),
    ],
)
def test_an_answer_that_takes_nothing_is_an_error_and_no_redirect_is_followed(
    hook: SignedWebhook, status: int, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    hook.status = status
    settings = WebhookNotices(url=hook.url, secret=hook.secret)
    with pytest.raises(error) as raised:
        settings.notifier().send(notices_of("t1")[:1])
    assert (hook.asked, hook.followed, hook.taken) == (1, 0, [])
    for said in (str(raised.value), repr(settings), caplog.text, settings.describe()):
        assert "token-that-nobody" not in said
        assert hook.secret not in said


def test_a_wrong_secret_is_noticed_by_whoever_checks(hook: SignedWebhook) -> None:
    with pytest.raises(NotifierRefused, match="401"):
        WebhookNotices(url=hook.url, secret="another-secret").notifier().send(notices_of("t1")[:1])


def test_a_notice_has_the_same_id_each_time(hook: SignedWebhook) -> None:
    notifier = WebhookNotices(url=hook.url, secret=hook.secret).notifier()
    start, _ = notices_of("t1")
    notifier.send([start])
    notifier.send([start])
    assert hook.ids == ["t1/start/", "t1/start/"]
