"""The headers that are kept are those of the setting, as text, and never too many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fuploader_dagster.contracts.source import CommittedBatch, Message, MessageSource
from fuploader_dagster.disk.header_text import MOST_BYTES, from_text
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.intake.kept_headers import KeptHeaders
from fuploader_dagster.processing.decoder import File


class Described(MessageSource):
    """A user's own source: messages have their description with them, and nothing else works."""

    def open(self) -> None: ...

    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        raise NotImplementedError

    def settle(self, batch: CommittedBatch) -> None: ...

    def close(self) -> None: ...

    def describe(self, message: Message) -> dict[str, Any]:
        described: dict[str, Any] = message.attributes
        return described


FILE = File("a.json", b"{}")


def message(described: Any) -> Message:
    return Message(b"{}", 1, False, None, described)


def kept(headers: Mapping[str, Any], *names: str, **properties: Any) -> dict[str, str]:
    described = message({"headers": dict(headers), **properties})
    (file,) = KeptHeaders(Described(), names).added([FILE], [described])
    assert isinstance(file, File)
    assert (file.name, file.content) == ("a.json", b"{}")
    return from_text(file.headers)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("thumb/64", "thumb/64"),
        ("", ""),
        ("größe\n\0", "größe\n\0"),
        (3, "3"),
        (-1.5, "-1.5"),
        (2**64 - 1, "18446744073709551615"),
        (True, "true"),
        (None, "null"),
        ({"a": [1, "ü", None]}, '{"a":[1,"ü",null]}'),
        ({"base64": "/w=="}, '{"base64":"/w=="}'),
        ("half \udcff", "half \\udcff"),
    ],
)
def test_each_value_becomes_text(value: Any, text: str) -> None:
    assert kept({"cmd": value}, "cmd") == {"cmd": text}


def test_names_are_those_of_the_setting_whatever_the_message_writes() -> None:
    headers = {"X_Cmd": "1", "Other": "2", "content-type": "image/png"}
    assert kept(headers, "x-cmd", "CONTENT_TYPE", "missing") == {
        "x-cmd": "1",
        "CONTENT_TYPE": "image/png",
    }


def test_a_header_comes_before_a_property_and_the_first_before_the_second() -> None:
    headers = {"cmd": "first", "CMD": "second", "priority": 9}
    found = kept(headers, "cmd", "priority", "app_id", priority=1, app_id="crawler")
    assert found == {"cmd": "first", "priority": "9", "app_id": "crawler"}


def test_a_message_without_any_of_them_has_none() -> None:
    (file,) = KeptHeaders(Described(), ["cmd"]).added([FILE], [message({"message_id": "1"})])
    assert file == FILE


def test_more_than_fits_is_a_bad_message_that_says_so() -> None:
    fitting = MOST_BYTES - len('{"cmd":""}')
    assert kept({"cmd": "x" * fitting}, "cmd") == {"cmd": "x" * fitting}
    for value in ("x" * (fitting + 1), "ü" * (fitting // 2 + 1), ["x" * fitting]):
        described = message({"headers": {"cmd": value, "other": "x" * 99_999}})
        (bad,) = KeptHeaders(Described(), ["cmd"]).added([FILE], [described])
        assert isinstance(bad, BadMessage)
        assert "its headers cmd have 16,38" in str(bad) or "16,39" in str(bad)
        assert "at most 16,384 are kept" in str(bad)


@pytest.mark.parametrize("described", [None, {"headers": {"cmd": object()}}, {"headers": {1: 2}}])
def test_a_source_that_fails_at_one_message_holds_up_no_other(described: Any) -> None:
    messages = [message({"headers": {"cmd": 1}}), message(described), message({"headers": None})]
    found = KeptHeaders(Described(), ["cmd"]).added([FILE, FILE, FILE], messages)
    assert found[0] == File("a.json", b"{}", '{"cmd":"1"}')
    assert isinstance(found[1], BadMessage)
    assert "reading its headers raised" in str(found[1])
    assert found[2] == FILE


def test_bad_messages_stay_and_messages_beyond_the_files_are_left_out() -> None:
    bad = BadMessage("no envelope")
    messages = [message({"headers": {"cmd": 1}})] * 3
    found = KeptHeaders(Described(), ["cmd"]).added([bad, FILE], messages)
    assert found == [bad, File("a.json", b"{}", '{"cmd":"1"}')]
