"""From bodies to messages: what is sent is what is published, and ids are names of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.contracts.source import Message, MessagePublisher
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.front.items import Form, Item, Items, form_of
from fuploader_dagster.processing.decoder import Decoder, File
from fuploader_dagster.resources.sources.rabbitmq.publisher import RabbitMQPublisher
from fuploader_dagster.resources.sources.redis_list.publisher import RedisListPublisher
from fuploader_dagster.settings.serve import Serve
from tests.settings import pipeline

FORMS: list[Form] = ["bytes", "json", "lines"]


def items(
    body: bytes,
    form: Form = "json",
    *,
    publisher: type[MessagePublisher] = RabbitMQPublisher,
    key: bytes = b"",
    **values: Any,
) -> list[Item]:
    values = {"message_format": "json", "serve": Serve(), **values}
    return Items(pipeline(Path(), **values), publisher).of(body, form, key, {})


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        (b"", "bytes"),
        (b"application/json", "json"),
        (b"Application/JSON; charset=utf-8", "json"),
        (b"application/x-ndjson", "lines"),
        (b"application/jsonl;x", "lines"),
        (b"application/jsonx", "bytes"),
        (b"application/x-www-form-urlencoded", "bytes"),
        (b"\xff", "bytes"),
    ],
)
def test_the_content_type_says_how_a_body_is_divided(content_type: bytes, form: str) -> None:
    assert form_of(content_type) == form


@given(
    body=st.binary(max_size=200) | st.text().map(str.encode),
    form=st.sampled_from(FORMS),
    message_format=st.sampled_from(["json", "raw", "envelope"]),
    keeps_ids=st.booleans(),
)
def test_whatever_is_taken_becomes_the_file_of_its_id(
    body: bytes, form: Form, message_format: str, keeps_ids: bool
) -> None:
    publisher = RabbitMQPublisher if keeps_ids else RedisListPublisher
    check_files(body, form, message_format, publisher)


@given(
    value=st.lists(
        st.dictionaries(
            st.sampled_from(["file_name", "rec_id", "id", "payload", "content", "compression"])
            | st.text(max_size=3),
            st.text(max_size=5) | st.integers() | st.none() | st.booleans() | st.just([1]),
            max_size=4,
        ),
        max_size=3,
    ),
    message_format=st.sampled_from(["json", "raw", "envelope"]),
    fields=st.sampled_from([("file_name",), ("rec_id",), ()]),
)
def test_so_do_objects_of_all_kinds(
    value: list[dict[str, Any]], message_format: str, fields: tuple[str, ...]
) -> None:
    body = json.dumps(value).encode()
    check_files(body, "json", message_format, RabbitMQPublisher, name_fields=fields)


def check_files(
    body: bytes,
    form: Form,
    message_format: str,
    publisher: type[MessagePublisher],
    **values: Any,
) -> None:
    """Nothing that is taken becomes a dead letter, or another file than was said."""
    settings = pipeline(Path(), message_format=message_format, serve=Serve(), **values)
    try:
        made = Items(settings, publisher).of(body, form, b"", {})
    except Refusal as refusal:
        assert 400 <= refusal.status < 500
        return
    for item in made:
        message = Message(item.body, 1, False, item.headers.get("message_id"))
        (file,) = Decoder(settings).decode([message])
        assert isinstance(file, File), file
        assert file.name == item.id
        assert publisher.keeps_headers or item.headers == {}


def test_elements_keep_their_bytes() -> None:
    body = (
        b'\xef\xbb\xbf [ {"rec_id":"a" ,"n":1.0e2} ,\n{"rec_id": "b", "n": 99999999999999999999}]'
    )
    made = items(body, name_fields=["rec_id"])
    assert [one.body for one in made] == [
        b'{"rec_id":"a" ,"n":1.0e2}',
        b'{"rec_id": "b", "n": 99999999999999999999}',
    ]
    assert [one.id for one in made] == ["a", "b"]


def test_a_key_gives_the_same_ids_and_another_key_others() -> None:
    one, again, other = (
        [item.id for item in items(b"[1, 2]", message_format="raw", key=key)]
        for key in (b"k", b"k", b"l")
    )
    assert one == again
    assert len({*one, *other}) == 4


def test_with_a_parser_the_id_is_that_of_the_message() -> None:
    (item,) = items(b"anything", "bytes", parser=json.loads)
    assert item.headers == {"message_id": item.id}
    (named,) = items(b'{"rec_id": "r"}', parser=json.loads)
    assert (named.id, named.body) == ("r", b'{"rec_id": "r"}')


def test_an_id_that_cannot_be_a_name_is_none() -> None:
    (item,) = items(b'{"rec_id": "../x"}', message_format="raw")
    assert item.id != "../x" and item.key is None


def test_a_refusal_names_the_message_and_never_raises_anything_else() -> None:
    with pytest.raises(Refusal, match="message 2 of 3"):
        items(b'[{}, "x", {}]')
    with pytest.raises(Refusal, match="line 2"):
        items(b"{}\n{", "lines")
    assert not issubclass(Refusal, BadMessage)
