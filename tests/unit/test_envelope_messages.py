"""The producers' functions against the FUploader package itself."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import file_uploader
from file_uploader import messages as theirs
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster import messages as ours

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


def test_publishing_hands_over_the_same_bodies_to_functions_and_coroutine_functions() -> None:
    items = [{"file_name": "a", "payload": {"é": 1}}, {"name": "b", "content": "text"}]
    envelope = ours.encode_file_message(items[0])

    def published(side: Any, awaited: bool) -> list[Any]:
        bodies: list[str] = []

        async def publish(body: str) -> None:
            bodies.append(body)

        asyncio.run(
            side.publish_file_messages(
                [*items, envelope], publish if awaited else bodies.append, file_name_field="name"
            )
        )
        return [outcome(lambda body=body: json.loads(body)) for body in bodies]

    assert published(ours, True) == published(theirs, True) == published(ours, False)


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


def test_every_message_function_of_the_package_is_here() -> None:
    for name in (
        "FileMessage",
        "DecodedFilePayload",
        "encode_file_message",
        "parse_file_message",
        "file_message_name",
        "serialize_file_payload",
        "publish_file_messages",
        "FileMessagePublisher",
    ):
        assert hasattr(ours, name)
        assert hasattr(file_uploader, name)
    assert ours.DecodedFilePayload("1", None, "json").file_id == "1"
