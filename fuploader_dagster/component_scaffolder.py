"""What `dg scaffold defs fuploader_dagster.QueueToObjectStore NAME` writes.

Without parameters a component that needs no server and runs at once. Parameters choose the kinds:

    dg scaffold defs fuploader_dagster.QueueToObjectStore orders \\
        --source rabbitmq --queue orders --state redis --store s3 --bucket archives

Addresses with logins are written as the names of environment variables.
"""

# No `from __future__ import annotations` here: Dagster reads annotations of scaffolders.

import json
import re
from typing import Any, Literal, get_args

import yaml
from dagster.components import Scaffolder, ScaffoldRequest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from fuploader_dagster.contracts.functions import load_reference
from fuploader_dagster.settings.loading import KINDS

SourceKind = Literal["embedded", "rabbitmq", "redis_stream", "redis_list", "kafka", "sql"]
StateKind = Literal["sqlite", "redis"]
StoreKind = Literal["local", "s3", "cos", "oss"]
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_REDIS = {"env": "REDIS_URL"}
_HINTS = {
    "embedded": "A queue in a folder, so that this runs at once. On RabbitMQ:\n"
    "source: {kind: rabbitmq, url: {env: RABBITMQ_URL}, queue: NAME}",
    "sqlite": "state: {kind: redis, url: {env: REDIS_URL}}",
    "local": "store: {kind: s3, bucket: archives, region: eu-central-1}",
}
"""Above what needs no server: what a project has later."""
_PYTHON = """\
import dagster as dg
from fuploader_dagster import {classes}


@dg.component_instance
def load(context: dg.ComponentLoadContext) -> QueueToObjectStore:
    return QueueToObjectStore(
        Pipeline(
            name="{name}",
            source={source},
            state={state},
            store={store},
        )
    )
"""


class ScaffoldParams(BaseModel):
    """What the component is written with."""

    model_config = ConfigDict(extra="forbid")

    source: SourceKind | None = Field(
        None,
        description="Kind of queue: " + ", ".join(get_args(SourceKind)) + ". By default "
        "embedded, or rabbitmq where `queue` is given.",
    )
    queue: str | None = Field(
        None,
        min_length=1,
        description="Name of the queue, stream, list, topic or table. By default the pipeline's.",
    )
    state: StateKind = Field("sqlite", description="Kind of state store: sqlite or redis.")
    store: StoreKind | None = Field(
        None,
        description="Kind of object store: " + ", ".join(get_args(StoreKind)) + ". By default "
        "local, or s3 where `bucket` is given.",
    )
    bucket: str | None = Field(None, min_length=1, description="The bucket, by default archives.")

    @model_validator(mode="after")
    def _bucket_has_a_store(self) -> Self:
        if self.bucket is not None and self.store == "local":
            raise ValueError("a local store has no bucket: choose --store s3, cos or oss")
        return self


class QueueToObjectStoreScaffolder(Scaffolder[ScaffoldParams]):
    """Writes a component of these kinds, named for its folder."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldParams]:
        return ScaffoldParams

    def scaffold(self, request: ScaffoldRequest[ScaffoldParams]) -> None:
        folder = request.target_path.parent if request.append else request.target_path
        name = pipeline_name(folder.name)
        parts = _parts(name, request.params)
        if request.scaffold_format == "python":
            (folder / "component.py").write_text(_python(name, parts), "utf-8")
            return
        text = _yaml(request.type_name, name, parts)
        if request.append:
            with request.target_path.open("a", encoding="utf-8") as file:
                file.write(f"---\n{text}")
        else:
            (folder / "defs.yaml").write_text(text, "utf-8")


def pipeline_name(folder: str) -> str:
    """A valid pipeline name, made of a folder's name."""
    name = re.sub(r"\W+", "_", folder.lower(), flags=re.ASCII).strip("_")[:64]
    return name if name[:1].isalpha() else f"pipeline_{name}".rstrip("_")


def _parts(name: str, params: ScaffoldParams) -> dict[str, tuple[str, dict[str, Any]]]:
    """Kind and settings of each part."""
    source = params.source or ("rabbitmq" if params.queue else "embedded")
    store = params.store or ("s3" if params.bucket else "local")
    queue, bucket = params.queue or name, params.bucket or "archives"
    sources: dict[str, dict[str, Any]] = {
        "embedded": {"path": f"data/{params.queue or f'{name}-queue'}"},
        "rabbitmq": {"url": {"env": "RABBITMQ_URL"}, "queue": queue},
        "redis_stream": {"url": _REDIS, "stream": queue},
        "redis_list": {"url": _REDIS, "key": queue},
        "kafka": {"bootstrap_servers": "localhost:9092", "topic": queue, "group": name},
        "sql": {"url": {"env": "DATABASE_URL"}, "table": queue, "cursor": "id"},
    }
    states: dict[str, dict[str, Any]] = {
        "sqlite": {"path": f"data/{name}-state.sqlite"},
        "redis": {"url": _REDIS},
    }
    stores: dict[str, dict[str, Any]] = {
        "local": {"path": "data/object-store"},
        "s3": {"bucket": bucket, "region": "eu-central-1"},
        "cos": {"bucket": bucket, "region": "eu-frankfurt"},
        "oss": {"bucket": bucket, "endpoint": "https://oss-eu-central-1.aliyuncs.com"},
    }
    return {
        "source": (source, sources[source]),
        "state": (params.state, states[params.state]),
        "store": (store, stores[store]),
    }


def _yaml(type_name: str, name: str, parts: dict[str, tuple[str, dict[str, Any]]]) -> str:
    lines = [f"type: {type_name}", "", "attributes:", f"  name: {name}", "  storage_root: data"]
    for role, (kind, values) in parts.items():
        hint = _HINTS.get(kind, "").replace("NAME", name)
        lines += [f"  # {line}" for line in hint.splitlines()]
        lines.append(f"  {role}: {_flow({'kind': kind, **values})}")
    return "\n".join([*lines, ""])


def _flow(value: Any) -> str:
    """A value in YAML, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(one)}" for name, one in value.items()) + "}"
    plain = _PLAIN.fullmatch(value) and yaml.safe_load(value) == value  # `on` would be a boolean
    return value if plain else json.dumps(value, ensure_ascii=False)


def _python(name: str, parts: dict[str, tuple[str, dict[str, Any]]]) -> str:
    classes = {"Pipeline", "QueueToObjectStore"}
    made = {}
    for role, (kind, values) in parts.items():
        found: type = load_reference(KINDS[role][kind])
        class_name = found.__name__.removesuffix("Settings")
        classes.add(class_name)
        given = ", ".join(f"{key}={_literal(value)}" for key, value in values.items())
        made[role] = f"{class_name}({given})"
    return _PYTHON.format(name=name, classes=", ".join(sorted(classes)), **made)


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return f"dg.EnvVar({_literal(value['env'])})"
    return json.dumps(value, ensure_ascii=False)
