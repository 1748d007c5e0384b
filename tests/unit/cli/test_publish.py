"""Publishing: lines become messages that the drain reads back, or an error with its number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import file_uploader
import pytest

from fuploader_dagster.cli.publish import numbered_bodies, publish_lines
from fuploader_dagster.contracts.refused_messages import publish_accepted
from fuploader_dagster.contracts.source import Message, MessagePublisher
from fuploader_dagster.errors import BadMessage, MessageRefused
from fuploader_dagster.processing.decoder import Decoder, File
from tests.settings import intake


def published(folder: Path, lines: list[bytes], **values: Any) -> list[File | BadMessage]:
    """What the drain makes of what is published."""
    settings = intake(folder, **values)
    sent = [body for _, body in numbered_bodies(lines, settings)]
    return Decoder(settings).decode([Message(body, 1, False, None) for body in sent])


def line(**item: Any) -> bytes:
    return json.dumps(item, ensure_ascii=False).encode() + b"\n"


def test_each_line_becomes_the_file_that_it_says(tmp_path: Path) -> None:
    lines = [
        line(file_name="a.json", payload={"ü": 1}),
        b"\n",
        line(file_name="b.txt", payload="ü"),
        b"  \r\n",
        line(aweme_id=17, content=[1, 2]),
        line(**file_uploader.encode_file_message({"file_name": "c", "payload": b"\x00"})),
    ]
    assert published(tmp_path, lines) == [
        File("a.json", '{"ü":1}'.encode()),
        File("b.txt", "ü".encode()),
        File("17", b"[1,2]"),
        File("c", b"\x00"),
    ]


@pytest.mark.parametrize("message_format", ["json", "raw"])
def test_for_other_formats_a_line_is_the_message(tmp_path: Path, message_format: str) -> None:
    text = b'{"file_name": "a",  "x": 1.0}'
    found = published(tmp_path, [text + b"\r\n", b"\n"], message_format=message_format)
    assert [one.content for one in found if isinstance(one, File)] == [text]


@pytest.mark.parametrize(
    "bad",
    [
        b"no json",
        b"[1]",
        b'{"file_name": "a"}',
        b'{"file_name": "a/b", "payload": 1}',
        b'{"file_name": "..", "payload": 1}',
        b'{"file_name": "\\ud800", "payload": 1}',
        b'{"file_name": "a", "payload": "\\ud800"}',
        b'{"file_name": "a", "payload": 1',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_line_that_cannot_become_a_message_is_named_by_its_number(
    tmp_path: Path, bad: bytes
) -> None:
    with pytest.raises(BadMessage, match="line 3 cannot become a message"):
        list(numbered_bodies([line(file_name="a", payload=1), b"\n", bad], intake(tmp_path)))


@pytest.mark.parametrize("message_format", ["envelope", "json"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(
    tmp_path: Path, message_format: str
) -> None:
    lines = [b"\xef\xbb\xbf" + line(file_name="a", payload=1), line(file_name="b", payload=2)]
    found = published(tmp_path, lines, message_format=message_format)
    assert [one.name for one in found if isinstance(one, File)] == ["a", "b"]


def test_for_raw_every_byte_of_a_line_is_the_message(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf\x00a\xff\n", b"\xef\xbb\xbfb\n"]
    found = published(tmp_path, lines, message_format="raw")
    assert [one.content for one in found if isinstance(one, File)] == [one[:-1] for one in lines]


@pytest.mark.parametrize("message_format", ["envelope", "json", "raw"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_file_in_utf_16_or_32_is_refused_and_nothing_is_sent(
    tmp_path: Path, message_format: str, encoding: str
) -> None:
    text = line(file_name="a", payload=1).decode() + line(file_name="b", payload=2).decode()
    marked = encoding in ("utf-16", "utf-32")
    if message_format == "raw" and not marked:
        pytest.skip("without a mark these are bytes like others")
    file = tmp_path / "lines"
    file.write_bytes(text.encode(encoding))
    with file.open("rb") as lines, pytest.raises(BadMessage, match="nothing was sent") as caught:
        next(numbered_bodies(lines, intake(tmp_path, message_format=message_format)))
    assert "iconv -f UTF-" in caught.value.hint
    assert not marked or encoding.upper() in str(caught.value)


class Picky(MessagePublisher):
    """Takes no body that begins with `x`; what it took before such a one is only partly known."""

    def __init__(self, unsure: int) -> None:
        self.taken: list[bytes] = []
        self._unsure = unsure

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        for position, (body, _) in enumerate(messages):
            if body.startswith(b"x"):
                confirmed = max(0, position - self._unsure)
                raise MessageRefused("too large", position=position, confirmed=confirmed)
            self.taken.append(body)
        return 0

    def backlog(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("unsure", [0, 1, 3, 100])
@pytest.mark.parametrize("refused", [[], [0], [9], [0, 9], [3, 4], list(range(10))])
def test_what_a_queue_refuses_stops_no_others_and_only_what_is_unsure_is_sent_twice(
    refused: list[int], unsure: int
) -> None:
    messages = [(b"x" if at in refused else b"%d" % at, {}) for at in range(10)]
    publisher = Picky(unsure)
    found = publish_accepted(publisher.publish, messages)
    assert sorted(found) == refused
    assert set(publisher.taken) == {body for body, _ in messages} - {b"x"}
    if not unsure:
        assert len(publisher.taken) == 10 - len(refused)


def test_lines_that_a_queue_refuses_are_named_by_their_numbers(tmp_path: Path) -> None:
    lines = [b"a\n", b"\n", b"x\n", b"b\n", b"xx\n"]
    publisher = Picky(0)
    settings = intake(tmp_path, message_format="raw")
    done: list[int] = []
    report = publish_lines(lines, settings, publisher, progress=done.append)
    assert (report.confirmed, [number for number, _ in report.refused]) == (2, [3, 5])
    assert publisher.taken == [b"a", b"b"]
    assert sum(done) == 4
