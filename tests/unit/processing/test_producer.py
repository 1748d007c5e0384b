"""The producers' functions against the FUploader package itself."""

from __future__ import annotations

import asyncio
import base64
import gzip
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import partial
from typing import Any

import file_uploader
import pytest
from file_uploader import messages as theirs
from hypothesis import given, settings
from hypothesis import strategies as st

import fuploader_dagster
from fuploader_dagster.processing import producer as ours

text = st.text(st.characters(exclude_categories=()), max_size=8)  # halves of surrogates too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
names = st.none() | st.sampled_from(["a", "a.json", " b ", "..", "x/y", "", 0, 7]) | text
mappings = st.dictionaries(
    st.sampled_from(
        ["file_name", "file_id", "aweme_id", "name", "id", "payload", "content", "compression"]
    ),
    names | values,
)
UUID = re.compile(r"[0-9a-f]{32}")
FIELDS = ["file_name", "file_id", "aweme_id", "name", "id"]
PACKED = base64.b64encode(gzip.compress(b"[1]")).decode()
DAMAGED = [PACKED[:8], PACKED[:20], PACKED[:-4], PACKED + "AAAA", PACKED[:-8] + "AAAAAAA="]
NAMES = [
    "FileMessage",
    "DecodedFilePayload",
    "encode_file_message",
    "parse_file_message",
    "file_message_name",
    "serialize_file_payload",
    "publish_file_messages",
    "FileMessagePublisher",
]


def outcome(function: Callable[[], Any]) -> Any:
    """What a call gives, or the type of what it raises; random names are all alike."""
    try:
        result = function()
    except Exception as error:
        return type(error)
    if isinstance(result, dict) and result.get("compression") == "gzip":
        result = dict(result)
        payload = result.get("payload")
        if isinstance(payload, str) and payload.startswith("H4sIA"):
            packed = base64.b64decode(payload)
            result["payload"] = packed[:4] + b"time" + packed[8:]
    return UUID.sub("uuid", repr(result))


@given(payload=values, name=names)
def test_a_file_message_is_encoded_to_the_same_bytes_but_for_the_time(
    payload: Any, name: Any
) -> None:
    assert outcome(
        lambda: ours.encode_file_message(ours.FileMessage(payload=payload, file_name=name))
    ) == outcome(
        lambda: theirs.encode_file_message(theirs.FileMessage(payload=payload, file_name=name))
    )


@given(
    item=mappings,
    field=st.sampled_from(["file_name", "name"]),
    id_field=st.sampled_from([None, "id"]),
)
def test_a_mapping_is_encoded_to_the_same_bytes_but_for_the_time(
    item: dict[str, Any], field: str, id_field: str | None
) -> None:
    options = {"file_name_field": field, "id_field": id_field}
    assert outcome(lambda: ours.encode_file_message(item, **options)) == outcome(
        lambda: theirs.encode_file_message(item, **options)
    )


@given(payload=values, name=names)
def test_each_reads_what_the_other_wrote_and_gets_the_same(payload: Any, name: Any) -> None:
    for write in (ours, theirs):
        try:
            body = json.dumps(write.encode_file_message({"file_name": name, "payload": payload}))
        except (ValueError, TypeError):
            continue
        for form in (body, body.encode()):
            read = [outcome(partial(side.parse_file_message, form)) for side in (ours, theirs)]
            assert read[0] == read[1]


@given(
    body=text | st.binary(max_size=30) | mappings.filter(lambda m: "x" not in m).map(repr),
)
def test_damage_raises_the_same_standard_error(body: str | bytes) -> None:
    assert outcome(lambda: ours.parse_file_message(body)) == outcome(
        lambda: theirs.parse_file_message(body)
    )


@given(data=mappings | names, suffix=st.sampled_from([".json", ".txt", "json", "."]))
def test_local_file_names_are_the_same(data: Any, suffix: str) -> None:
    assert outcome(lambda: ours.file_message_name(data, suffix=suffix)) == outcome(
        lambda: theirs.file_message_name(data, suffix=suffix)
    )
    if isinstance(data, str):
        decoded = [side.DecodedFilePayload(data, None, "json") for side in (ours, theirs)]
        assert outcome(lambda: ours.file_message_name(decoded[0])) == outcome(
            lambda: theirs.file_message_name(decoded[1])
        )


@given(payload=values, kind=st.sampled_from(["json", "JSON", "text", "bytes", "xml"]))
def test_payloads_are_written_to_disk_as_the_same_bytes(payload: Any, kind: str) -> None:
    assert outcome(lambda: ours.serialize_file_payload(payload, content_type=kind)) == outcome(
        lambda: theirs.serialize_file_payload(payload, content_type=kind)
    )


def test_an_encoded_envelope_is_passed_on_as_it_is() -> None:
    envelope = {"file_id": "1", "compression": "none", "payload": "x", "more": 1}
    assert ours.encode_file_message(envelope) == envelope
    assert ours.is_encoded(envelope)
    assert not ours.is_encoded({"file_id": "1", "payload": "x"})


def test_encoding_twice_gives_the_same_bytes() -> None:
    item = {"file_name": "1", "payload": {"a": 1}}
    packed = base64.b64decode(ours.encode_file_message(item)["payload"])
    assert packed[4:8] == bytes(4)
    assert ours.encode_file_message(item) == ours.encode_file_message(item)


@given(payload=values, name=names)
def test_what_either_encodes_becomes_the_same_file_at_the_other(payload: Any, name: Any) -> None:
    for writer, reader in ((ours, theirs), (theirs, ours)):
        try:
            item = writer.FileMessage(payload=payload, file_name=name)
            body = json.dumps(writer.encode_file_message(item), ensure_ascii=False)
            own = writer.parse_file_message(body)
        except (ValueError, TypeError):
            continue
        decoded = reader.parse_file_message(body)
        file_name = reader.file_message_name(decoded)
        content = reader.serialize_file_payload(decoded.payload, content_type=decoded.content_type)
        if name and str(name).strip():
            assert file_name.removesuffix(".json") == str(name).strip().removesuffix(".json")
            assert file_name == writer.file_message_name(own)
        assert content == writer.serialize_file_payload(own.payload, content_type=own.content_type)
        if isinstance(payload, (bytes, str)):
            assert content == (payload if isinstance(payload, bytes) else payload.encode())
            assert type(decoded.payload) is type(payload)
        else:
            assert repr(decoded.payload) == repr(json.loads(json.dumps(payload)))
        # A strategy may get what one of the two decoded and hand it to the other's function.
        for one in (decoded, own):
            assert outcome(partial(ours.file_message_name, one)) == outcome(
                partial(theirs.file_message_name, one)
            )


@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), names | values),
    name_fields=st.lists(st.sampled_from([*FIELDS, "payload"]), max_size=3).map(tuple),
    options=st.fixed_dictionaries(
        {},
        optional={
            "compression": st.sampled_from(["gzip", " GZIP", "zstd", None, 1]),
            "content_type": st.sampled_from(["json", "Text ", "bytes", "xml", None, 0]),
            "payload": st.sampled_from(["", "H4sI", "é", None, {"a": 1}, *DAMAGED]),
        },
    ),
)
def test_an_envelope_is_named_by_the_fields_that_both_are_told_to_look_at(
    fields: dict[str, Any], name_fields: tuple[str, ...], options: dict[str, Any]
) -> None:
    good = theirs.encode_file_message({"payload": [1], "file_name": "x"})
    del good["file_name"]
    try:
        body = json.dumps({**good, **fields, **options})
    except TypeError:  # bytes among the values
        return
    assert outcome(lambda: ours.parse_file_message(body, name_fields=name_fields)) == outcome(
        lambda: theirs.parse_file_message(body, name_fields=name_fields)
    )


def published(
    side: Any, items: list[Any], *, awaited: bool = False, one_by_one: bool = False, **options: Any
) -> tuple[list[str], Any]:
    """The bodies that were handed over, without the time in them, and how it ended."""
    bodies: list[str] = []

    async def publish(body: str) -> None:
        bodies.append(body)

    hand_over = publish if awaited else bodies.append
    made = [side.FileMessage(*item) if isinstance(item, tuple) else item for item in items]

    async def run() -> None:
        if not one_by_one:
            await side.publish_file_messages(made, hand_over, **options)
            return
        publisher = side.FileMessagePublisher(hand_over, **options)
        for item in made:
            await publisher.publish_one(item)

    ended = outcome(lambda: asyncio.run(run()))
    return [without_time(body) for body in bodies], ended


def without_time(body: str) -> str:
    payload = json.loads(body).get("payload")
    if isinstance(payload, str) and payload.startswith("H4sIA"):
        packed = base64.b64decode(payload)
        timeless = base64.b64encode(packed[:4] + bytes(4) + packed[8:]).decode()
        body = body.replace(payload, timeless)
    return UUID.sub("uuid", body)


@settings(max_examples=50)
@given(
    items=st.lists(mappings | st.tuples(values, names) | st.tuples(values), max_size=4),
    awaited=st.booleans(),
    one_by_one=st.booleans(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "file_name_field": st.sampled_from(["name", "id"]),
            "id_field": st.sampled_from(["id", None]),
        },
    ),
)
def test_publishing_hands_over_the_same_bodies_up_to_the_first_that_cannot_be_encoded(
    items: list[Any], awaited: bool, one_by_one: bool, options: dict[str, Any]
) -> None:
    how: dict[str, Any] = {"awaited": awaited, "one_by_one": one_by_one, **options}
    assert published(ours, items, **how) == published(theirs, items, **how)


@pytest.mark.parametrize("name", NAMES)
def test_every_message_function_of_the_package_is_here_with_its_parameters(name: str) -> None:
    def parameters(of: Any) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(of).parameters.values()
        return [(one.name, one.kind, one.default) for one in found]

    here, there = getattr(fuploader_dagster, name), getattr(file_uploader, name)
    assert parameters(here) == parameters(there)
    assert inspect.iscoroutinefunction(here) == inspect.iscoroutinefunction(there)
    for method in ("publish_many", "publish_one"):
        if hasattr(there, method):
            assert parameters(getattr(here, method)) == parameters(getattr(there, method))


@given(payload=values, name=names)
def test_messages_are_the_same_values(payload: Any, name: Any) -> None:
    for kind, arguments in (
        ("FileMessage", {"payload": payload, "file_name": name}),
        ("DecodedFilePayload", {"file_name": name, "payload": payload, "content_type": "json"}),
    ):
        one, other = (getattr(side, kind)(**arguments) for side in (ours, theirs))
        assert repr(one) == repr(other)
        assert outcome(partial(hash, one)) == outcome(partial(hash, other))
        for made in (one, other):
            assert made == type(made)(**arguments)
            with pytest.raises(FrozenInstanceError):
                made.payload = None
    decoded = (side.DecodedFilePayload(name, payload, "json") for side in (ours, theirs))
    assert [one.file_id for one in decoded] == [name, name]
