"""The JSON Schema of `fuploader.yaml`, for editors: names, kinds, types, defaults, descriptions.

What must always hold: a file that is written as the documentation writes it fits the schema. The
schema knows less than the models do (values that do not go together, for example), and nothing of
forms that are only tolerated (a number in quotes): `fuploader lint` has the last word.

A Dagster component has the same settings in another form, `attribute`: a text may stand in place of
any value, a template (`{{ env.BUCKET }}`), and a backend is a union of its kinds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from fuploader_dagster.contracts.functions import load_reference
from fuploader_dagster.settings.loading import KINDS
from fuploader_dagster.settings.pipeline import Pipeline

_OF_ENVIRONMENT: dict[str, Any] = {
    "type": "object",
    "properties": {"env": {"type": "string", "description": "Name of an environment variable."}},
    "required": ["env"],
    "additionalProperties": False,
}
_REFERENCE = {"type": "string", "pattern": r"^[\w.]+:\w+$"}
"""`package.module:name`."""


def schema() -> dict[str, Any]:
    """The whole schema, draft 2020-12."""
    shared = _properties(Pipeline) | {"failure_webhook": _field(Pipeline, "alert_webhook")}
    for name in ("source", "state", "store", "process"):
        shared[name] = {"$ref": f"#/$defs/{name}", "description": shared[name]["description"]}
    several = {"type": "array", "items": {"$ref": "#/$defs/store"}}
    shared["former_stores"] |= several
    shared["sinks"] |= {"type": "object", "additionalProperties": {"$ref": "#/$defs/sink"}}
    one = {"$ref": "#/$defs/notify"}
    shared["notify"] = {
        "anyOf": [one, {"type": "array", "items": one}],
        "description": shared["notify"]["description"],
    }
    of_pipeline = {name: value for name, value in shared.items() if name != "name"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fuploader.yaml",
        "type": "object",
        "required": ["pipelines"],
        "properties": {
            "pipelines": {
                "type": "object",
                "minProperties": 1,
                "description": "The pipelines, by name. Settings beside it apply to all of them.",
                "propertyNames": {"pattern": "^[a-z][a-z0-9_]{0,63}$"},
                "additionalProperties": {"$ref": "#/$defs/pipeline"},
            },
            **{name: {"$ref": f"#/$defs/pipeline/properties/{name}"} for name in of_pipeline},
        },
        "additionalProperties": False,
        "$defs": {
            "pipeline": {
                "type": "object",
                "properties": of_pipeline,
                "additionalProperties": False,
            },
            **{role: _role(role) for role in KINDS},
        },
    }


def attribute(name: str) -> dict[str, Any]:
    """What a setting of a pipeline may be in a component. It has no references to other places,
    because Dagster moves it; no description, and no default."""
    if name in ("source", "state", "store", "process"):
        return _union(name)
    if name == "former_stores":
        return {"type": "array", "items": _union("store")}
    if name == "sinks":
        return {"type": "object", "additionalProperties": _union("sink")}
    if name == "notify":
        one = _union("notify")
        return {"anyOf": [one, {"type": "array", "items": one}]}
    return {"anyOf": _or_template(_types(Pipeline.model_fields[name]))}


def _union(role: str) -> dict[str, Any]:
    """A backend of any kind, as a union that `kind` tells apart.

    `oneOf` is what tools show. It leaves unknown kinds, and names that are unknown or missing, to
    the rules beside it: those say which it is, and `oneOf` only that no alternative fits.
    """
    kinds = list(KINDS[role])
    made = {kind: _kind(kind, reference) for kind, reference in KINDS[role].items()}
    for one in made.values():
        for name, field in one["properties"].items():
            if name != "kind":
                field["anyOf"] = _or_template(field["anyOf"])
    own = {"title": "package.module:Class", "properties": {"kind": {"not": {"enum": kinds}}}}
    kind = {"if": {"pattern": ":"}, "then": _REFERENCE, "else": {"enum": kinds}}
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"type": "string", **kind}},
        "discriminator": {"propertyName": "kind"},
        "oneOf": [
            *(
                {"title": kind, "required": ["kind"], "properties": one["properties"]}
                for kind, one in made.items()
            ),
            own,
        ],
        "allOf": [
            _if_kind(
                kind,
                {"required": one["required"], "propertyNames": {"enum": list(one["properties"])}},
            )
            for kind, one in made.items()
        ],
    }


def _or_template(types: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = {"type": "string"}
    return types if {} in types or text in types else [*types, text]


def _if_kind(kind: str, then: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": then}


def _role(role: str) -> dict[str, Any]:
    """A backend of any kind; of a class of one's own only the kind is known."""
    kinds = list(KINDS[role])
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"anyOf": [{"enum": kinds}, _REFERENCE]}},
        "allOf": [
            _if_kind(kind, _kind(kind, reference)) for kind, reference in KINDS[role].items()
        ],
    }


def _kind(kind: str, reference: str) -> dict[str, Any]:
    model: type[BaseModel] = load_reference(reference)
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    properties = {"kind": {"const": kind}, **_properties(model)}
    return {"properties": properties, "required": required, "additionalProperties": False}


def _properties(model: type[BaseModel]) -> dict[str, Any]:
    return {name: _field(model, name) for name in model.model_fields}


def _field(model: type[BaseModel], name: str) -> dict[str, Any]:
    field = model.model_fields[name]
    made: dict[str, Any] = {"anyOf": _types(field)}
    if field.description:
        made["description"] = " ".join(field.description.split())
    default = _plain(field)
    if default is not None:
        made["default"] = default
    return made


def _types(field: FieldInfo) -> list[dict[str, Any]]:
    """What values may be; anything where the type does not say."""
    try:
        made = TypeAdapter(field.annotation or Any).json_schema(mode="validation")
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        return [{}]
    if "$defs" in made or made == {}:
        return [{}]
    allowed: list[dict[str, Any]] = made.get("anyOf", [made])
    kinds = {one.get("type") for one in allowed if not one.keys() & {"enum", "const"}}
    if "string" in kinds:
        allowed = [*allowed, _OF_ENVIRONMENT]
    if "object" in kinds:  # whose values may be secrets; some are lists of names as well
        return [{"type": "object"}, {"type": "array"}]
    if "array" in kinds:  # `a, b` is a list of names
        allowed = [*allowed, {"type": "string"}]
    return allowed


def _plain(field: FieldInfo) -> Any:
    if field.is_required() or field.default_factory is not None:
        return None
    default = field.default
    if isinstance(default, Path):
        return str(default)
    return default if isinstance(default, (str, int, float, bool)) else None
