"""What `fuploader status` says about the queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster import Depth, MessagePublisher, PartDepth, SourceSettings
from fuploader_dagster.cli.status import _print_queue, _print_status
from fuploader_dagster.health.status import status_of
from fuploader_dagster.intake.worker_status import StatusReport
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from tests.settings import pipeline


class InParts(MessagePublisher):
    """Of a queue that counts its parts apart."""

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        raise NotImplementedError

    def backlog(self) -> int:
        return 1_207

    def depth(self) -> Depth:
        parts = (PartDepth("orders/0", 1_200, 5_000, 6_200), PartDepth("orders/1", 7))
        return Depth(self.backlog(), in_hand=40, parts=parts)

    def close(self) -> None:
        pass


class InPartsSettings(SourceSettings):
    def publisher(self) -> MessagePublisher:
        return InParts()

    def describe(self) -> str:
        return "topic orders"


def test_what_waits_in_the_queue_is_shown(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, source=EmbeddedQueue(path=tmp_path / "queue"))
    publisher = settings.source.publisher()
    publisher.publish([(b"x", {}), (b"y", {})])
    publisher.close()
    found = status_of(settings)["queue"]
    assert (found["depth"], found["trouble"]) == (Depth(waiting=2), "")


def test_a_queue_that_does_not_answer_hides_nothing_else(tmp_path: Path) -> None:
    found = status_of(pipeline(tmp_path))
    assert found["queue"]["depth"] is None
    assert "never-opened" in found["queue"]["trouble"]
    assert found["stored_messages"] == 0


def test_parts_of_a_queue_are_shown_with_their_lag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = status_of(pipeline(tmp_path, source=InPartsSettings()))["queue"]
    _print_queue(found)
    printed = capsys.readouterr().out
    assert "topic orders: 1,207 messages wait, 40 in hand" in printed
    (line,) = (line for line in printed.splitlines() if "orders/0" in line)
    assert [word for word in line.split() if word[0].isdigit()] == ["1,200", "5,000", "6,200"]


def test_what_each_worker_reads_is_a_column_where_the_queue_gives_them_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = pipeline(tmp_path)
    worker = StatusReport(settings.layout, 0)
    worker.write(now=True)
    _print_status(status_of(settings))
    assert "reads" not in capsys.readouterr().out
    worker.status.reads = "orders[0-2]"
    worker.write(now=True)
    _print_status(status_of(settings))
    printed = capsys.readouterr().out
    assert "reads" in printed
    assert "orders[0-2]" in printed
    worker.remove()
