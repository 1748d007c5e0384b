"""What producers and people write: bodies and properties of messages, and the configuration."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import msgspec

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.processing.decoder import Decoder
from fuploader_dagster.processing.envelope import decode_json, encode
from fuploader_dagster.resources.sources.rabbitmq.properties import (
    chosen,
    described,
    message_id,
)
from fuploader_dagster.settings.loading import load_pipelines
from tests.fuzz.mutation import Edit, mutated
from tests.fuzz.target import Target
from tests.properties_for_tests import (
    EVERY_TYPE,
    HEADERS,
    MESSAGE_ID,
    nested,
    short,
    table,
    with_headers,
    with_message_id,
)
from tests.settings import intake

MAX_BYTES = 2**20


class EnvelopeTarget(Target):
    """Bodies of messages. `repaired` changes what is inside of the base64 and the gzip."""

    name = "envelope"
    share = 26

    @cached_property
    def valid(self) -> Sequence[bytes]:
        members = gzip.compress(b'{"a":', mtime=0) + gzip.compress(b"1}", mtime=0)
        odd = {
            "file_id": 7301,
            "compression": "GZIP",
            "payload": base64.b64encode(members).decode(),
        }
        return [
            encode("7301.json", b'{"text": "some text", "n": [1, 2.5, null]}'),
            encode("text.txt", "Zeichen äöü 字".encode(), "text"),
            encode("b.bin", bytes(range(256)), "bytes"),
            json.dumps(odd).encode(),
        ]

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        try:
            fields = json.loads(self.valid[len(data) % len(self.valid)])
            packed = mutated(base64.b64decode(fields["payload"]), changes, self.valid)
            content = mutated(gzip.decompress(base64.b64decode(fields["payload"])), changes, [data])
        except ValueError:
            return data
        inner = gzip.compress(content, 1, mtime=0) if len(changes) % 2 else packed
        return json.dumps(fields | {"payload": base64.b64encode(inner).decode()}).encode()

    @cached_property
    def decoders(self) -> list[Decoder]:
        settings = {"max_unpacked_bytes": MAX_BYTES}
        return [
            Decoder(intake(self.folder, message_format=form, **settings))
            for form in ("envelope", "json", "raw")
        ]

    def put(self, data: bytes) -> bool:
        message = Message(data, 1, False, data[:20].decode("latin-1"), None)
        for decoder in self.decoders:
            (found,) = decoder.decode([message])
            assert isinstance(found, BadMessage) or len(found.content) <= max(MAX_BYTES, len(data))
        with suppress(BadMessage):
            decode_json(data).payload  # noqa: B018
        (found,) = self.decoders[0].decode([message])
        return not isinstance(found, BadMessage)


class PropertiesTarget(Target):
    """Properties of messages as AMQP encodes them. Refused is what is kept undecoded."""

    name = "properties"
    share = 5

    @cached_property
    def valid(self) -> Sequence[bytes]:
        types = {name.encode(): value for name, (value, _) in EVERY_TYPE.items()}
        flags = struct.pack(">H", HEADERS | MESSAGE_ID)
        return [
            b"\0\0",
            with_message_id(b"id-1"),
            flags + table(types) + short(b"id-2"),
            with_headers({b"list": nested(b"A", 20), b"table": nested(b"F", 20)}),
        ]

    def put(self, data: bytes) -> bool:
        assert isinstance(message_id(data), (str, type(None)))
        written = msgspec.json.encode(described(data))
        assert json.loads(written) == described(data)
        found = chosen(data, {"headers": "all", "message-id": "id", "a": "a", "k": "k"})
        assert json.loads(msgspec.json.encode(found)) == found
        return b'"undecoded' not in written


class ConfigTarget(Target):
    """fuploader.yaml."""

    name = "config"
    share = 4

    @cached_property
    def valid(self) -> Sequence[bytes]:
        parts = """
    source: {kind: rabbitmq, host: h, queue: q, heartbeat_seconds: 30}
    state: {kind: sqlite, path: data/state.sqlite}
    store: {kind: local, path: data/objects}
"""
        more = """    seal_age_seconds: 12.5
    node_id: n1
    name_fields: [a, b]
    key: '{archive}'
"""
        return [
            f"storage_root: data\npipelines:\n  docs:{parts}".encode(),
            f"process_count: 2\npipelines:\n  docs:{parts}{more}".encode(),
        ]

    def put(self, data: bytes) -> bool:
        path = self.folder / "fuploader.yaml"
        path.write_bytes(data)
        return bool(load_pipelines(path))
