"""What requests may hold, as JSON Schema for the OpenAPI document.

What must always hold: what the schema allows is taken by a server of these pipelines, and what it
forbids is refused, as far as a schema can say that (it cannot count bytes, for example).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuploader_dagster.processing.envelope import MAX_FILE_NAME_BYTES
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.serve import Serve

_IN_A_NAME = r"[^/\\\u0000-\u001f\u007f-\u009f]*"
FILE_NAME = {
    "type": "string",
    "maxLength": MAX_FILE_NAME_BYTES,
    "pattern": rf"^(?!\.{{1,2}}$){_IN_A_NAME}$",
}
"""What a file can be called."""
_NAMES = {
    "maxLength": MAX_FILE_NAME_BYTES,
    "pattern": rf"^\s*(?!\.{{1,2}}\s*$){_IN_A_NAME}\s*$",
    "description": "Names the message's file: text or a number.",
}
"""The field that names a message: a text must fit. Spaces around it do not count."""
_FLAT = {"type": ["string", "number", "boolean", "null"]}
_ANY = {"not": {"type": "array"}}
"""A list is a message for each of its elements."""


def message_bodies(pipelines: Sequence[Pipeline]) -> dict[str, Any]:
    """What may be published, by content type."""
    kinds: list[dict[str, Any]] = []
    for kind in map(_message, pipelines):
        if kind not in kinds:
            kinds.append(kind)
    one = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    most = max((pipeline.serve or Serve()).max_items for pipeline in pipelines)
    several = {"type": "array", "minItems": 1, "maxItems": most, "items": one}
    lines = {"type": "string", "minLength": 1, "description": "A JSON value in each line."}
    found: dict[str, Any] = {
        "application/json": {"schema": {"anyOf": [{**one, **_ANY}, several]}},
        "application/x-ndjson": {"schema": lines},
    }
    if any(map(_takes_bytes, pipelines)):
        bytes_ = {"type": "string", "format": "binary", "minLength": 1}
        found["application/octet-stream"] = {"schema": bytes_}
    return found


def _takes_bytes(pipeline: Pipeline) -> bool:
    """Whether a message of it can be something else than JSON."""
    flat = pipeline.serve is not None and pipeline.serve.flat
    return not flat and (pipeline.parser is not None or pipeline.message_format != "json")


def _message(pipeline: Pipeline) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    if pipeline.serve is not None and pipeline.serve.flat:
        schema = {"type": "object", "additionalProperties": _FLAT}
    if pipeline.parser is None and pipeline.message_format == "json":
        schema["type"] = "object"
        if pipeline.file_name is None and pipeline.name_fields:
            kind = schema.get("additionalProperties", {})
            schema["properties"] = {pipeline.name_fields[0]: {**kind, **_NAMES}}
    return schema
