"""Writes docs/settings.md from the settings' own models, so that the page cannot go stale.

    python -m tools.settings_reference            writes docs/settings.md
    python -m tools.settings_reference --check    exit code 1 if the page is not what it would write

Names, types, limits, defaults and descriptions are those of the pydantic models; a field without a
description is an error.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fuploader_dagster.contracts.functions import load_reference
from fuploader_dagster.contracts.object_store import OpensObjectStore
from fuploader_dagster.contracts.settings import Settings
from fuploader_dagster.settings.loading import KINDS
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from fuploader_dagster.settings.serve import Serve
from fuploader_dagster.settings.takeover import Takeover

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
_ORDER = {"source": "Where messages come from", "state": "What counts and coordinates"}
_ORDER["store"] = "Where archives go"
_ORDER["process"] = "What works on files before they are packed"
_ORDER["sink"] = "Where rows go"
_ORDER["notify"] = "Who is told of tasks"
_COLUMNS = "| setting | takes | default | |\n|---|---|---|---|"
_MIB = 1 << 20
_OWN_ROWS = {
    "source",
    "state",
    "store",
    "former_stores",
    "takeover",
    "process",
    "sinks",
    "notify",
    "serve",
}
_HEADINGS = {"sink": "each of `sinks`"}
_LIMITS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
_HEAD = """# Every setting

`python -m tools.settings_reference` writes this page from the models that check the settings, and
a test holds the two together. Units are in the names. Unknown names, impossible values and
settings that contradict each other are refused when the file is loaded, each with a sentence.

In `fuploader.yaml` a pipeline's settings are below `pipelines: NAME:`, or beside `pipelines:` for
all pipelines. In Python they are the arguments of `Pipeline(...)`, with objects for `source`,
`state` and `store`. Environment variables override the file:
`FUPLOADER_PIPELINES__DOCUMENTS__SEAL_MESSAGES=500`. Give secrets as `{env: NAME}`, in Python as
`EnvVar("NAME")`; an object store takes them in no other way. A variable that is not set is an error
where the secret is used, not when the file is loaded: so the file can be checked without secrets.

`fuploader lint` checks a file alone, says what is wrong with each pipeline in it, and ends with 2
if anything is. For an editor that completes and checks YAML, run
`fuploader schema > fuploader.schema.json` beside the file, and make its first line
`# yaml-language-server: $schema=fuploader.schema.json`.

Relative paths are relative to the file; in a component's file, to the folder of its project (with
`pyproject.toml`); in Python, to the working folder. YAML fills in no `${NAME}`, and takes the last
of two equal keys: both are refused, and so is a component's template that gives nothing.
"""


def page() -> str:
    """The whole page."""
    of_intake = Intake.model_fields
    of_shipping = {n: f for n, f in Pipeline.model_fields.items() if n not in of_intake}
    parts = [
        _HEAD,
        "## A pipeline, from the queue to a sealed slot\n",
        _table(of_intake, "Pipeline"),
        "\n## A pipeline, from a sealed slot to a stored archive\n",
        _table(of_shipping, "Pipeline"),
        "\n## What FUploader left: `takeover`\n",
        "Told in [migrating from FUploader](migrating-from-fuploader.md).\n",
        _table(Takeover.model_fields, "Takeover"),
        "\n## What `fuploader serve` takes: `serve`\n",
        "`true` for the defaults. Told in [over HTTP](serve.md).\n",
        _table(Serve.model_fields, "Serve"),
    ]
    for part, title in _ORDER.items():
        parts.append(f"\n## {title}: {_HEADINGS.get(part, f'`{part}`')}\n")
        parts.append(
            "`kind` is one of the names below, or `package.module:Class` for one of your own "
            "([adding a backend](adding-a-backend.md)).\n"
        )
        for kind, reference in KINDS[part].items():
            model = load_reference(reference)
            parts += [
                f"### `kind: {kind}`\n",
                _sentence(model),
                _table(model.model_fields, kind),
                *_nested(model.model_fields, kind),
                "",
            ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _sentence(model: type[BaseModel]) -> str:
    first = (model.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(first.split()) + f" In Python: `{model.__name__.removesuffix('Settings')}`.\n"


def _table(fields: dict[str, FieldInfo], whose: str) -> str:
    rows = [_COLUMNS]
    for name, field in fields.items():
        if not field.description:
            raise SystemExit(f"{whose}.{name} has no description")
        what = " ".join(field.description.split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {_takes(name, field)} | {_default(field)} | {what} |")
    return "\n".join(rows)


def _nested(fields: dict[str, FieldInfo], whose: str) -> Iterator[str]:
    """A table for each setting that has settings of its own."""
    for name, field in fields.items():
        model = _bare(field.annotation)[0]
        if _has_settings(model):
            yield f"\n`{name}` of `kind: {whose}`:\n"
            yield _table(model.model_fields, f"{whose}.{name}")


def _has_settings(annotation: Any) -> bool:
    """Settings of a part, and not those of another store."""
    is_one = isinstance(annotation, type) and issubclass(annotation, Settings)
    return is_one and not issubclass(annotation, OpensObjectStore)


def _takes(name: str, field: FieldInfo) -> str:
    shapes = {
        "former_stores": "a list, see below",
        "sinks": "a mapping, see below",
        "split_by": "a list or a mapping",
    }
    if name in _OWN_ROWS or name in shapes:
        return shapes.get(name, "see below")
    annotation, metadata = _bare(field.annotation)
    limits = [
        f"{word} {_number(getattr(one, limit))}"
        for limit, word in _LIMITS.items()
        for one in (*field.metadata, *metadata)
        if getattr(one, limit, None) is not None
    ]
    patterns = [
        one.pattern for one in (*field.metadata, *metadata) if getattr(one, "pattern", None)
    ]
    return " ".join([_word(annotation), *limits, *(f"`{p}`".replace("|", "\\|") for p in patterns)])


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without `| None` and `Annotated`, and what was annotated."""
    if get_origin(annotation) in (Union, types.UnionType):
        without = [one for one in get_args(annotation) if one is not type(None)]
        return _bare(without[0]) if len(without) == 1 else (annotation, ())
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        bare, more = _bare(inner)
        return bare, (*metadata, *more)
    return annotation, ()


def _word(annotation: Any) -> str:  # noqa: PLR0911 - a word each
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = (one for one in get_args(annotation) if one is not type(None))
        return " or ".join(_word(_bare(one)[0]) for one in kinds)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    if get_origin(annotation) in (dict, Mapping):
        return "a mapping"
    if get_origin(annotation) in (tuple, list, Sequence):
        return "a list"
    if get_origin(annotation) is not None or annotation is Any:
        return "a function" if annotation is not Any else "a template or a function"
    words = {
        bool: "`true`, `false`",
        int: "a whole number",
        float: "a number",
        Path: "a path",
        SecretStr: "a secret",
        str: "text",
    }
    if annotation in words:
        return words[annotation]
    if _has_settings(annotation):
        return "see below"
    return "another store" if issubclass(annotation, BaseModel) else annotation.__name__


def _default(field: FieldInfo) -> str:  # noqa: PLR0911 - a form each
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Takeover):
        return "see below"
    if value is PydanticUndefined:
        return "**required**"
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        return "hidden" if value.get_secret_value() else "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, (tuple, list, dict)):
        return ", ".join(f"`{one}`" for one in value) or "none"
    return f"`{value}`" if str(value) else "empty"


def _number(value: float) -> str:
    if isinstance(value, int) and value >= _MIB and value % _MIB == 0:
        return f"{value:_} ({value // _MIB:,} MiB)"
    return f"{value:_}" if isinstance(value, int) else f"{value:g}"


def main() -> int:
    """Write the page, or compare."""
    made = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text("utf-8") == made:
            return 0
        print("docs/settings.md is not what the models say: run python -m tools.settings_reference")
        return 1
    PAGE.write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
