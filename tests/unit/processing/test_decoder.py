"""Decoding: each message gives a file or a dead letter, and never spoils another one."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import file_uploader
import msgspec
import pytest
from file_uploader.services.meta_writer import MetaWriter

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.dead_letters.letters import DeadLetter
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.processing.decoder import Decoder, File
from fuploader_dagster.processing.envelope import Envelope, encode
from fuploader_dagster.processing.producer import parse_file_message
from tests.settings import intake

HERE = "tests.unit.processing.test_decoder"


def message(body: bytes, message_id: str | None = None) -> Message:
    return Message(body, 1, False, message_id)


def decode(folder: Path, bodies: list[bytes], **values: Any) -> list[File | BadMessage]:
    decoder = Decoder(intake(folder, **values))
    try:
        return decoder.decode([message(body) for body in bodies])
    finally:
        decoder.close()


# --- strategies of users -------------------------------------------------------------------------


def readme_parser(raw_body: bytes) -> dict[str, Any]:
    decoded = file_uploader.parse_file_message(raw_body)
    return {"aweme_id": decoded.file_name, **decoded.payload}


async def async_parser(raw_body: bytes) -> dict[str, Any]:
    await asyncio.sleep(0.2)
    return readme_parser(raw_body)


def readme_name(data: dict[str, Any]) -> str:
    return f"{data.get('aweme_id', 'unknown')}.json"


def popping_name(data: dict[str, Any]) -> str:
    return str(data.pop("aweme_id"))


class Hostile(Mapping[str, Any]):
    """Raises when anybody looks at it."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("do not look")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("do not look")

    def __len__(self) -> int:
        return 1


def results_by_body(body: bytes) -> Any:
    """What a parser may return or do, by the body's word."""
    word = body.decode()
    if word == "raise":
        raise KeyError("no such field")
    if word == "exit":
        sys.exit(1)
    if word == "half":
        raise ValueError("bad name \ud800")
    return RESULTS.get(word, {"file_name": word})


RESULTS: dict[str, Any] = {
    "none": None,
    "set": {1, 2},
    "object": object(),
    "hostile": Hostile(),
    "surrogate": "\ud800",
    "kind": SimpleNamespace(file_name="k", payload=1, content_type="xml"),
    "bytes": b"\x00\xff",
    "text": "ü",
    "list": [1, "ü"],
    "number": 5,
    "envelope": Envelope("e.json", "json", b"{ }"),
    "named": {"file_name": "n.json", "ü": 1.50},
}


async def results_by_body_later(body: bytes) -> Any:
    await asyncio.sleep(0)
    if body == b"cancel":
        raise asyncio.CancelledError
    return results_by_body(body)


def name_by_content(envelope: Envelope) -> Any:
    word = envelope.content.decode()
    if word == "raise":
        raise LookupError("no name")
    return NAMES[word]


NAMES: dict[str, Any] = {
    "none": None,
    "number": 7,
    "bytes": b"a",
    "slash": "a/b",
    "absolute": "/etc/passwd",
    "up": "../a",
    "dots": "..",
    "dot": ".",
    "backslash": "a\\b",
    "nul": "a\0b",
    "line": "a\nb",
    "empty": "",
    "long": "x" * 256,
    "long in bytes": "ü" * 128,
    "half": "\udc80",
}


# --- built-in formats ----------------------------------------------------------------------------


def test_an_envelopes_content_is_stored_as_received_under_its_name(tmp_path: Path) -> None:
    bodies = [encode("a.json", b'{ "x" : 1.0 }'), encode("b", b"\x00", "bytes")]
    assert decode(tmp_path, bodies) == [File("a.json", b'{ "x" : 1.0 }'), File("b", b"\x00")]


def test_json_bodies_are_files_named_by_a_field(tmp_path: Path) -> None:
    body = b'{"id": 17, "name": "b",  "x": 1.0}'
    (file,) = decode(tmp_path, [body], message_format="json", name_fields=("key", "id"))
    assert file == File("17", body)


def test_raw_bodies_are_files_named_by_the_message_or_by_themselves(tmp_path: Path) -> None:
    decoder = Decoder(intake(tmp_path, message_format="raw"))
    named, unusable, unnamed, again = decoder.decode(
        [message(b"x", "id-1"), message(b"x", "a/b"), message(b"x"), message(b"x")]
    )
    assert named == File("id-1", b"x")
    assert unusable == unnamed == again
    assert isinstance(unnamed, File)
    assert len(unnamed.name) == 32


def test_without_name_fields_every_name_comes_from_the_body(tmp_path: Path) -> None:
    for message_format, body in (("envelope", encode("a", b"1")), ("json", b'{"file_name": "a"}')):
        values = {"message_format": message_format, "name_fields": ()}
        one, two = decode(tmp_path, [body, body], **values)
        assert isinstance(one, File)
        assert one == two
        assert one.name != "a"


@pytest.mark.parametrize("message_format", ["envelope", "json"])
def test_a_body_that_is_none_of_the_format_is_a_dead_letter_and_the_others_flow_on(
    tmp_path: Path, message_format: str
) -> None:
    good = encode("a", b"1")
    found = decode(tmp_path, [good, b"\xff", good, b"[1]", good], message_format=message_format)
    kinds = [type(one) for one in found]
    assert kinds == [File, BadMessage, File, BadMessage, File]


@pytest.mark.parametrize("values", [{}, {"parser": f"{HERE}:async_parser"}])
def test_what_the_source_knows_to_be_damaged_is_a_dead_letter_and_not_decoded(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    body = encode("a.json", b'{"n": 1}')
    damaged = message(body)._replace(damage="its row changed on the disk")
    decoder = Decoder(intake(tmp_path, **values))
    results = decoder.decode([message(body), damaged, message(body)])
    decoder.close()
    assert [isinstance(one, File) for one in results] == [True, False, True]
    assert str(results[1]) == "its row changed on the disk"


def test_a_message_that_unpacks_to_too_much_is_a_dead_letter(tmp_path: Path) -> None:
    bodies = [encode("a", bytes(1001)), encode("b", bytes(1000))]
    large, fits = decode(tmp_path, bodies, max_unpacked_bytes=1000)
    assert isinstance(large, BadMessage)
    assert "more than 1000 bytes" in str(large)
    assert isinstance(fits, File)


# --- own parsers and names -----------------------------------------------------------------------

PAYLOADS = [{"b": 1.5, "a": ["ü", None]}, {"nested": {"x": True}}]


@pytest.mark.parametrize("parser", [readme_parser, async_parser])
def test_a_parser_and_a_name_generator_of_fuploaders_readme_give_its_bytes(
    tmp_path: Path, parser: Any
) -> None:
    bodies = [
        json.dumps(file_uploader.encode_file_message({"file_name": f"{n}", "payload": p})).encode()
        for n, p in enumerate(PAYLOADS)
    ]
    found = decode(tmp_path, bodies, parser=parser, file_name=readme_name)
    wanted = [readme_parser(body) for body in bodies]
    assert found == [File(readme_name(data), MetaWriter._serialize(data)) for data in wanted]


@pytest.mark.parametrize("payload", [{"ü": 1.50}, [1], None, "text ü", b"\x00\xff"])
@pytest.mark.parametrize("parser", [file_uploader.parse_file_message, parse_file_message])
def test_fuploaders_own_parser_gives_the_bytes_that_fuploader_writes(
    tmp_path: Path, parser: Any, payload: Any
) -> None:
    item = file_uploader.encode_file_message({"file_name": "a.bin", "payload": payload})
    body = json.dumps(item).encode()
    wanted = MetaWriter._serialize(file_uploader.parse_file_message(body))
    assert decode(tmp_path, [body], parser=parser) == [File("a.bin", wanted)]
    named = decode(tmp_path, [body], parser=parser, file_name=file_uploader.file_message_name)
    assert named == [File("a.bin.json", wanted)]


def test_a_name_is_asked_for_before_the_content_is_written(tmp_path: Path) -> None:
    body = json.dumps(file_uploader.encode_file_message({"file_name": "a", "payload": {"x": 1}}))
    found = decode(tmp_path, [body.encode()], parser=readme_parser, file_name=popping_name)
    assert found == [File("a", b'{"x": 1}')]


def test_async_parsers_of_a_batch_run_side_by_side(tmp_path: Path) -> None:
    bodies = [
        json.dumps(file_uploader.encode_file_message({"file_name": f"{n}", "payload": {}})).encode()
        for n in range(50)
    ]
    started = time.monotonic()
    found = decode(tmp_path, bodies, parser=async_parser, file_name=readme_name)
    assert time.monotonic() - started < 5  # one after the other would take 10 s
    assert [one.name for one in found if isinstance(one, File)] == [f"{n}.json" for n in range(50)]


@pytest.mark.parametrize(
    ("word", "name", "content"),
    [
        ("named", "n.json", '{"file_name": "n.json", "ü": 1.5}'.encode()),
        ("envelope", "e.json", b"{ }"),
        ("bytes", None, b"\x00\xff"),
        ("text", None, "ü".encode()),
        ("list", None, '[1, "ü"]'.encode()),
        ("number", None, b"5"),
    ],
)
def test_what_a_parser_returns_is_written_as_fuploader_does(
    tmp_path: Path, word: str, name: str | None, content: bytes
) -> None:
    first, again = decode(tmp_path, [word.encode()] * 2, parser=results_by_body)
    assert isinstance(first, File)
    assert first == again
    assert first.content == content
    assert first.name == name if name else len(first.name) == 32


BAD_RESULTS = {
    "raise": "results_by_body{} raised KeyError: 'no such field'",
    "exit": "results_by_body{} raised SystemExit: 1",
    "half": "results_by_body{} raised ValueError: bad name \\ud800",
    "none": "results_by_body{} returned None",
    "set": "writing what the parser returned raised TypeError",
    "object": "writing what the parser returned raised TypeError",
    "hostile": "in what the parser returned raised RuntimeError: do not look",
    "surrogate": "writing what the parser returned raised UnicodeEncodeError",
    "kind": "writing what the parser returned raised ValueError: unsupported content_type",
}


@pytest.mark.parametrize("word", BAD_RESULTS)
@pytest.mark.parametrize("parser", [results_by_body, results_by_body_later])
def test_a_parser_that_misbehaves_on_one_message_makes_that_one_a_dead_letter(
    tmp_path: Path, parser: Any, word: str
) -> None:
    before, bad, after = decode(tmp_path, [b"x", word.encode(), b"y"], parser=parser)
    assert isinstance(bad, BadMessage)
    assert BAD_RESULTS[word].format("" if parser is results_by_body else "_later") in str(bad)
    assert [one.name for one in (before, after) if isinstance(one, File)] == ["x", "y"]


def test_a_cancelled_async_parser_cancels_nothing_else(tmp_path: Path) -> None:
    found = decode(tmp_path, [b"x", b"cancel", b"y"], parser=results_by_body_later)
    assert [type(one) for one in found] == [File, BadMessage, File]


@pytest.mark.parametrize("word", [*NAMES, "raise"])
def test_a_name_generator_that_misbehaves_on_one_message_makes_that_one_a_dead_letter(
    tmp_path: Path, word: str
) -> None:
    NAMES["good"] = "x" * 255
    bodies = [encode("n", text.encode(), "text") for text in ("good", word, "good")]
    before, bad, after = decode(tmp_path, bodies, file_name=name_by_content)
    assert isinstance(bad, BadMessage)
    assert before == after == File("x" * 255, b"good")


@pytest.mark.parametrize("word", ["slash", "dots", "nul", "long", "half"])
def test_a_name_in_a_parsers_result_is_checked_as_any_other(tmp_path: Path, word: str) -> None:
    RESULTS["unusable"] = {"file_name": NAMES[word]}
    (bad,) = decode(tmp_path, [b"unusable"], parser=results_by_body)
    assert isinstance(bad, BadMessage)


def test_every_reason_can_be_written_to_the_dead_letters(tmp_path: Path) -> None:
    words = [word.encode() for word in BAD_RESULTS]
    bodies = [encode("n", word.encode(), "text") for word in [*NAMES, "raise"] if word != "good"]
    found = decode(tmp_path, words, parser=results_by_body)
    found += decode(tmp_path, bodies, file_name=name_by_content)
    for bad in found:
        assert isinstance(bad, BadMessage)
        msgspec.json.encode(
            DeadLetter(
                time="",
                reason=str(bad),
                redelivered=False,
                message_id=None,
                attributes={},
                body=b"",
            )
        )
