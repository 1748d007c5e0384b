"""Publishing: lines become messages that the drain reads back, or an error with its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import file_uploader
import pytest

from fuploader_dagster.decoding import Decoder, File
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.publishing import bodies
from fuploader_dagster.source import Message
from tests.settings import intake


def published(folder: Path, lines: list[bytes], **values: Any) -> list[File | BadMessage]:
    """What the drain makes of what is published."""
    settings = intake(folder, **values)
    sent = [body for body, _ in bodies(lines, settings)]
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
        list(bodies([line(file_name="a", payload=1), b"\n", bad], intake(tmp_path)))
