"""Dead letters: whole, durable, readable again, whatever a crash left at the end of a file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fuploader_dagster.dead_letters.letters import (
    DeadLetter,
    DeadLetterBox,
    Requeued,
    numbered_dead_letters,
    read_dead_letters,
    requeue,
    requeued_ids,
)
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ

NOON = 1_795_262_400.0  # 2026-11-21T12:00:00Z
DAY = 86_400.0


def letter(body: bytes, reason: str = "why") -> DeadLetter:
    return DeadLetter(
        time="2026-11-21T12:00:00.000+00:00",
        reason=reason,
        redelivered=True,
        message_id="id-1",
        attributes={"headers": {"x": [1, None, "ü"]}},
        body=body,
    )


def test_a_letter_comes_back_as_it_was_with_every_byte(tmp_path: Path) -> None:
    kept = [letter(bytes(range(256))), letter(b""), letter(b"\n\r\n", "line\nbreak ü")]
    box = DeadLetterBox(Layout(tmp_path), 3)
    box.keep(kept[:2])
    box.keep(kept[2:])
    assert list(read_dead_letters(Layout(tmp_path))) == kept


def test_each_worker_writes_a_file_of_its_own_each_day(tmp_path: Path) -> None:
    now = [NOON]
    boxes = [DeadLetterBox(Layout(tmp_path), worker, clock=lambda: now[0]) for worker in (0, 10)]
    for day in range(2):
        now[0] = NOON + day * DAY
        for box in boxes:
            box.keep([letter(b"%d" % day)])
    assert sorted(path.name for path in (tmp_path / "dead-letters").glob("*.jsonl")) == [
        "20261121-w0.jsonl",
        "20261121-w10.jsonl",
        "20261122-w0.jsonl",
        "20261122-w10.jsonl",
    ]
    assert [one.body for one in read_dead_letters(Layout(tmp_path))] == [b"0", b"0", b"1", b"1"]
    assert boxes[0].now() == "2026-11-22T12:00:00.000+00:00"


def test_nothing_is_made_where_there_is_nothing_to_keep(tmp_path: Path) -> None:
    DeadLetterBox(Layout(tmp_path), 0).keep([])
    assert list(tmp_path.iterdir()) == []
    assert list(read_dead_letters(Layout(tmp_path))) == []


def test_a_line_torn_at_any_byte_costs_no_other_letter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = DeadLetterBox(Layout(tmp_path), 0)
    box.keep([letter(b"one")])
    whole = box.path().read_bytes()
    for cut in range(len(whole)):
        box.path().write_bytes(whole + whole[:cut])
        caplog.clear()
        box.keep([letter(b"two")])
        with caplog.at_level(logging.WARNING):
            found = [one.body for one in read_dead_letters(Layout(tmp_path))]
        # without its line break, a last letter is whole all the same
        assert found == [b"one"] + [b"one"] * (cut == len(whole) - 1) + [b"two"]
        assert bool(caplog.records) == (0 < cut < len(whole) - 1)


def test_letters_sent_back_carry_body_and_headers_and_are_remembered(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "docs")
    DeadLetterBox(layout, 0).keep([letter(b"first"), letter(b"second")])
    queue = EmbeddedQueue(path=tmp_path / "queue")
    numbered = list(numbered_dead_letters(layout))
    publisher = queue.publisher()
    assert requeue(layout, numbered[1:], publisher) == Requeued(1)
    publisher.close()
    assert requeued_ids(layout) == {numbered[1][0]}
    source = queue.source(prefetch=10)
    source.open()
    (message,) = source.receive(10, 5)
    assert (message.body, message.message_id) == (b"second", "id-1")
    assert source.describe(message)["headers"] == {"x": [1, None, "ü"]}
    source.close()


def test_letters_that_the_queue_did_not_confirm_are_not_taken_for_sent(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    DeadLetterBox(layout, 0).keep([letter(b"kept")])
    publisher = RabbitMQ(url="amqp://127.0.0.1:1/", queue="q").publisher()
    with pytest.raises(SourceUnavailable):
        requeue(layout, list(numbered_dead_letters(layout)), publisher)
    assert requeued_ids(layout) == set()
