"""What every notifier must do, written once. A test module of yours subclasses `NotifierContract`.

class TestMyNotifier(NotifierContract):
    @pytest.fixture
    def settings(self): ...          # settings that ask for the field `task_id`
    @pytest.fixture
    def received(self): ...          # a function: what the asker of a task got, oldest first
    @pytest.fixture
    def outage(self): ...            # a context manager: nobody answers within the block
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from fuploader_dagster.contracts.notifier import Notice, Notifier, NotifierSettings
from fuploader_dagster.errors import NotifierUnavailable

Received = Callable[[str], list[str]]
"""From the task's id to the words (`Notice.word`) that its asker got, oldest first."""

LONGEST_OUTAGE_SECONDS = 60.0


def notices_of(task: str, *items: str) -> list[Notice]:
    """All notices of a task."""
    events: list[tuple[Any, str]] = [("start", ""), *(("item", one) for one in items), ("end", "")]
    fields = {"task_id": task}
    return [
        Notice(
            f"{task}/{event}/{item}",
            event,
            item,
            fields,
            {"id": f"{task}/{event}/{item}", "event": event, "task": fields}
            | ({"item": {"name": item}} if item else {}),
        )
        for event, item in events
    ]


class NotifierContract:
    """Needs the fixtures of the module's docstring."""

    repeats = True
    """Whether a notice that is sent twice comes twice."""
    can_be_down = True

    @pytest.fixture
    def outage(self) -> AbstractContextManager[object]:
        return nullcontext()

    @pytest.fixture
    def notifier(self, settings: NotifierSettings) -> Iterator[Notifier]:
        made = settings.notifier()
        yield made
        made.close()

    def _send(self, notifier: Notifier, notices: list[Notice]) -> None:
        for start in range(0, len(notices), notifier.most_at_once):
            notifier.send(notices[start : start + notifier.most_at_once])

    def test_notices_come_in_their_order(self, notifier: Notifier, received: Received) -> None:
        self._send(notifier, notices_of("t1", "a.jpg", "b.jpg"))
        assert received("t1") == ["start", "a.jpg", "b.jpg", "end"]

    def test_many_notices_come_all_in_their_order(
        self, notifier: Notifier, received: Received
    ) -> None:
        names = [f"{number}.jpg" for number in range(250)]
        self._send(notifier, notices_of("t1", *names))
        assert received("t1") == ["start", *names, "end"]

    def test_names_come_as_they_are(self, notifier: Notifier, received: Received) -> None:
        names = ["ü ß.jpg", "图片.png", '"quoted"', "two\nlines", "end", "{task_id}", "%s"]
        self._send(notifier, notices_of("t1", *names))
        assert received("t1") == ["start", *names, "end"]

    def test_sending_again_is_safe(self, notifier: Notifier, received: Received) -> None:
        notices = notices_of("t1", "a.jpg")
        self._send(notifier, notices[:2])
        self._send(notifier, notices)
        words = ["start", "a.jpg"]
        assert received("t1") == (words if self.repeats else []) + [*words, "end"]

    def test_after_closing_it_can_be_used_again(
        self, notifier: Notifier, received: Received
    ) -> None:
        start, end = notices_of("t1")
        self._send(notifier, [start])
        notifier.close()
        notifier.close()
        self._send(notifier, [end])
        assert received("t1") == ["start", "end"]

    def test_who_is_dead_is_said_to_be_within_seconds_and_may_come_back(
        self,
        notifier: Notifier,
        received: Received,
        outage: AbstractContextManager[object],
    ) -> None:
        if not self.can_be_down:
            pytest.skip("this kind is never down")
        start, end = notices_of("t1")
        self._send(notifier, [start])
        with outage:
            began = time.monotonic()
            with pytest.raises(NotifierUnavailable):
                self._send(notifier, [end])
            assert time.monotonic() - began < LONGEST_OUTAGE_SECONDS
        self._send(notifier, [end])
        words = received("t1")
        assert list(dict.fromkeys(words)) == ["start", "end"]

    def test_settings_describe_themselves_without_secrets(self, settings: NotifierSettings) -> None:
        assert settings.describe() == settings.describe()
        revealed = settings.model_dump(mode="json", context={"reveal_secrets": True})
        hidden = settings.model_dump(mode="json")
        secrets = [one for name, one in revealed.items() if one != hidden[name]]
        assert not [one for one in secrets if str(one) in settings.describe()]
