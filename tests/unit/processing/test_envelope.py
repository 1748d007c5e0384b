"""The envelope as FUploader reads and writes it, and the bounds that FUploader does not have."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
from typing import Any

import file_uploader
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuploader_dagster.errors import BadMessage, ConfigError
from fuploader_dagster.processing.envelope import (
    Envelope,
    check_file_name,
    decode_envelope,
    decode_json,
    decode_raw,
    encode,
    read_envelope,
)
from fuploader_dagster.processing.producer import serialize_file_payload

LIMIT = 1 << 20
NAME_FIELDS = ("file_name", "file_id", "aweme_id")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
names = st.text(max_size=12) | st.sampled_from(["7301", " a b ", "", ".", "..", "a/b", "a\\b", "é"])


def body_of(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")


def packed(content: bytes, **options: Any) -> str:
    return base64.b64encode(gzip.compress(content, **options)).decode()


def unusual(packed_payload: str) -> st.SearchStrategy[str]:
    """The payload as some producers write it, some of it damaged."""
    middle = len(packed_payload) // 2
    zipped = base64.b64decode(packed_payload)

    def again(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return st.sampled_from(
        [
            packed_payload,
            f"  {packed_payload}\n",
            packed_payload[:middle] + "\r\n" + packed_payload[middle:],
            packed_payload[:middle] + "-*" + packed_payload[middle:],
            packed_payload.rstrip("="),
            packed_payload[:middle],
            packed_payload + "é",
            again(zipped + gzip.compress(b" ")),
            again(zipped + b"\0\0\0"),
            again(zipped + b"garbage"),
            again(zipped[:-3]),
            again(zipped[:-6] + b"\1\2" + zipped[-4:]),
            again(zipped[:3] + b"\x08" + zipped[4:10] + b"a name\0" + zipped[10:]),
            again(zipped[:3] + b"\x02" + zipped[4:10] + b"\0\0" + zipped[10:]),
            "",
            "!!!!",
        ]
    )


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Envelopes good, odd and bad: each field right, of another type, or missing."""
    kind = draw(st.sampled_from(["json", "text", "bytes"]))
    content = draw(
        json_values.map(lambda value: json.dumps(value).encode())
        if kind == "json"
        else st.text(max_size=40).map(str.encode) | st.binary(max_size=40)
    )
    odd = json_values
    fields: dict[str, Any] = {"payload": packed(content), "compression": "gzip"}
    if draw(st.booleans()):
        fields["payload"] = draw(unusual(packed(content)) | odd)
    if draw(st.integers(0, 3)) == 0:
        fields["compression"] = draw(st.sampled_from(["GZip ", "zstd", "", None]))
    fields["content_type"] = kind
    if draw(st.booleans()):
        fields["content_type"] = draw(st.sampled_from([kind.upper(), f" {kind}", "x", "", None]))
    for field in draw(st.lists(st.sampled_from((*NAME_FIELDS, "other")), max_size=3)):
        fields[field] = draw(names | odd)
    if draw(st.booleans()):
        fields = dict(draw(st.permutations(list(fields.items()))))
    body = body_of(**fields)
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=2)) + body[at + draw(st.integers(0, 2)) :]
    return body


@given(body=bodies())
@example(body=b'{"x":"\xff","compression":"gzip","payload":"%s"}' % packed(b"{}").encode())
@example(
    body=b'{"file_name":"\\ud800","compression":"gzip","payload":"%s"}' % packed(b"1").encode()
)
@example(
    body=b'{"file\\u005fname":"a","compression":"gzip","payload":"%s"}' % packed(b"1").encode()
)
@example(body=b'{"file_name":1,"file_name":"b","compression":"gzip"}')
@example(body=b'{"file_name":' + b"[" * 100_000)
@example(body=b"[]")
@example(body=b"")
def test_an_envelope_is_read_as_fuploader_reads_it_and_refused_where_it_refuses(
    body: bytes,
) -> None:
    try:
        expected = file_uploader.parse_file_message(body)
    except Exception:
        expected = None
    try:
        ours = decode_envelope(body, max_bytes=LIMIT)
    except BadMessage:
        assert expected is None
        return
    if expected is None:
        # The one difference: JSON content is not looked into before somebody asks for it.
        assert ours.content_type == "json"
        with pytest.raises(BadMessage):
            _ = ours.payload
        return
    assert ours.content_type == expected.content_type
    serialize = file_uploader.serialize_file_payload
    assert serialize_file_payload(ours.payload, content_type=ours.content_type) == serialize(
        expected.payload, content_type=expected.content_type
    )
    fields = json.loads(body)
    if any(str(fields.get(field) or "").strip() for field in NAME_FIELDS):
        assert ours.file_name == expected.file_name


@given(body=bodies())
def test_the_fast_path_answers_as_the_tolerant_one(body: bytes) -> None:
    try:
        tolerant = read_envelope(body, NAME_FIELDS, LIMIT)
    except Exception:
        tolerant = None
    try:
        fast = decode_envelope(body, max_bytes=LIMIT)
    except BadMessage:
        assert tolerant is None
        return
    assert tolerant is not None
    assert (fast.file_name, fast.content_type, fast.content) == (
        tolerant[0] or fast.file_name,
        *tolerant[1:],
    )


@given(name=names, content=st.binary(max_size=200), kind=st.sampled_from(["text", "bytes"]))
def test_fuploader_reads_what_we_encode(name: str, content: bytes, kind: str) -> None:
    if kind == "text":
        content = content.decode("latin-1").encode()
    try:
        body = encode(name, content, kind)
    except ValueError:
        assert name != name.strip() or name in ("", ".", "..") or set("/\\") & set(name)
        return
    theirs = file_uploader.parse_file_message(body)
    assert (theirs.file_name, theirs.content_type) == (name, kind)
    assert (theirs.payload.encode() if kind == "text" else theirs.payload) == content
    assert decode_envelope(body, max_bytes=LIMIT).content == content


@given(body=st.binary(max_size=60))
def test_no_bytes_raise_anything_but_bad_message(body: bytes) -> None:
    for decode in (decode_json, lambda body: decode_envelope(body, max_bytes=LIMIT)):
        try:
            assert isinstance(decode(body), Envelope)
        except BadMessage as error:
            assert str(error).isprintable()


def test_json_content_keeps_the_bytes_it_was_received_with() -> None:
    content = b'{ "b":1.50,"a" : "\\u00e9",  "b":2 }\n'
    envelope = decode_envelope(
        body_of(file_name="1", compression="gzip", payload=packed(content)), max_bytes=LIMIT
    )
    assert envelope.content == content
    assert envelope.payload == {"a": "é", "b": 2}


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("odd_header", [False, True])
def test_a_small_message_cannot_fill_the_memory(members: int, odd_header: bool) -> None:
    bomb = gzip.compress(bytes(100 << 20), compresslevel=9)
    if odd_header:  # the tolerant path's
        bomb = bomb[:3] + b"\x08" + bomb[4:10] + b"a name\0" + bomb[10:]
    body = body_of(
        file_name="1", compression="gzip", payload=base64.b64encode(bomb * members).decode()
    )
    tracemalloc.start()
    try:
        with pytest.raises(BadMessage, match=r"more than 65536 bytes.*max_unpacked_bytes"):
            decode_envelope(body, max_bytes=1 << 16)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size_bytes", [0, 1, 65_535, 65_536])
@pytest.mark.parametrize("members", [1, 2])
def test_content_up_to_the_limit_passes_and_one_byte_more_does_not(
    size_bytes: int, members: int
) -> None:
    zipped = gzip.compress(bytes(size_bytes)) + gzip.compress(b"") * (members - 1)
    body = body_of(
        compression="gzip", content_type="bytes", payload=base64.b64encode(zipped).decode()
    )
    assert decode_envelope(body, max_bytes=size_bytes).content == bytes(size_bytes)
    if size_bytes:
        with pytest.raises(BadMessage, match="max_unpacked_bytes"):
            decode_envelope(body, max_bytes=size_bytes - 1)


def test_a_message_without_a_name_has_the_same_name_each_time_and_another_body_another() -> None:
    one, other = (
        body_of(compression="gzip", payload=packed(content, mtime=1)) for content in (b"1", b"2")
    )
    first = decode_envelope(one, max_bytes=LIMIT).file_name
    assert first == decode_envelope(one, max_bytes=LIMIT).file_name
    assert first != decode_envelope(other, max_bytes=LIMIT).file_name
    assert check_file_name(first) == first


@pytest.mark.parametrize(("message_id", "used"), [("m-1", True), ("a/b", False), ("", False)])
def test_a_raw_body_is_named_by_its_message_id_if_a_file_can_be_called_so(
    message_id: str, used: bool
) -> None:
    assert (decode_raw(b"\0\1", message_id).file_name == message_id) is used


def test_name_fields_are_asked_in_their_order() -> None:
    body = body_of(id=5, key="k", compression="gzip", payload=packed(b"1"))
    assert decode_envelope(body, name_fields=("id", "key"), max_bytes=LIMIT).file_name == "5"
    assert decode_envelope(body, name_fields=("no", "key"), max_bytes=LIMIT).file_name == "k"
    assert decode_json(body, name_fields=("key", "id")).file_name == "k"


def test_a_name_field_that_the_envelope_uses_otherwise_is_refused() -> None:
    with pytest.raises(ConfigError, match="payload"):
        decode_envelope(b"{}", name_fields=("payload",), max_bytes=LIMIT)


@given(value=st.dictionaries(st.sampled_from([*NAME_FIELDS, "x"]), names | json_values))
def test_a_json_body_is_its_own_content_and_named_by_its_fields(value: dict[str, Any]) -> None:
    body = body_of(**value)
    name = next(filter(None, (str(value.get(field) or "").strip() for field in NAME_FIELDS)), None)
    if name is not None and (set("/\\") & set(name) or name in (".", "..")):
        with pytest.raises(BadMessage):
            decode_json(body)
        return
    envelope = decode_json(body)
    assert (envelope.content, envelope.content_type) == (body, "json")
    assert name is None or envelope.file_name == name


@pytest.mark.parametrize("body", [b"", b"[1]", b'"a"', b'{"a":', b'{"a":"\xff"}', b"{}x"])
def test_a_body_that_is_no_json_object_is_a_bad_message(body: bytes) -> None:
    with pytest.raises(BadMessage, match="not a JSON object"):
        decode_json(body)


def test_a_raw_body_is_its_own_content() -> None:
    assert decode_raw(b"\xff\0", "id-1") == Envelope("id-1", "bytes", b"\xff\0")
    assert decode_raw(b"\xff\0").file_name == decode_raw(b"\xff\0").file_name


def test_the_repr_of_an_envelope_does_not_show_its_content() -> None:
    assert "private" not in repr(Envelope("1", "text", b"private"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (".", "directory"),
        ("..", "directory"),
        ("a/b", "separator"),
        ("/etc/passwd", "separator"),
        ("é\\b", "separator"),
        ("a\0", "control"),
        ("a\n", "control"),
        ("a\x7f", "control"),
        ("é\x85", "control"),
        ("\ud800", "surrogate"),
        ("a" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
    ],
)
def test_a_name_that_no_file_should_have_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason) as caught:
        check_file_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["7301.json", "...", ".hidden", "a b", "é" * 127, "a" * 255, "名前.json", "\u200d"]
)
def test_any_other_name_is_taken_as_it_is(name: str) -> None:
    assert check_file_name(name) == name


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b'{"id": 1, "text": "x"}', "set message_format: json"),
        (b'{"file_name": "a", "payload": {"n": 1}}', "set message_format: json"),
        (b"hello", "set message_format: raw"),
        (b"\xff\x00", "set message_format: raw"),
        (b"[1]", "set message_format: raw"),
        (b'{"compression": "zip", "payload": "x"}', "correct the producer"),
        (b'{"compression": "gzip", "payload": "xx"}', "correct the producer"),
    ],
)
def test_a_body_that_is_no_envelope_says_which_format_would_take_it(body: bytes, hint: str) -> None:
    with pytest.raises(BadMessage) as caught:
        decode_envelope(body, max_bytes=1000)
    assert hint in caught.value.hint
