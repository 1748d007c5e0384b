"""QueueToObjectStore: a pipeline as a Dagster component, for projects whose definitions are YAML.

    type: fuploader_dagster.QueueToObjectStore
    attributes:
      name: documents
      source: {kind: rabbitmq, url: {env: RABBITMQ_URL}, queue: documents}
      ...

The attributes are those of a pipeline in `fuploader.yaml`, checked by the same model with the same
error messages; `dg docs` shows that model's names, types and descriptions. Dagster fills in its
templates (`{{ env.BUCKET }}`) first. `dg scaffold defs` writes a component that runs at once.
"""

# No `from __future__ import annotations` here: Dagster reads annotations of components.

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

import dagster as dg
from dagster.components import Scaffolder, ScaffoldRequest
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo
from typing_extensions import Self

from fuploader_dagster.contracts.functions import USER_ERRORS, load_reference
from fuploader_dagster.contracts.relative_paths import relative_to
from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.loading import KINDS, load_pipeline
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.yaml_file import refuse_shell_variables, texts_in

_IN_YAML: dict[str, Any] = {
    **dict.fromkeys(KINDS, dict[str, Any]),
    "notify": dict[str, Any] | list[dict[str, Any]],
    "former_stores": list[dict[str, Any]],
    "sinks": dict[str, dict[str, Any]],
    "name_fields": list[str] | str,
    "headers": list[str] | str,
    "parquet_columns": dict[str, str],
    "alert_webhook": dict[str, str] | str | None,
}
"""Settings that YAML writes in another form. Functions and paths are written as their names."""
_TEMPLATE = re.compile(r"\{\{.*?\}\}", re.S)
_RUNNING = "Sensors and schedules are on as soon as Dagster loads them."
_YAML = """\
type: {type_name}

attributes:
  name: {name}
  storage_root: data
  # A queue in a folder, so that this runs at once. On RabbitMQ:
  # source: {{kind: rabbitmq, url: {{env: RABBITMQ_URL}}, queue: {name}}}
  source: {{kind: embedded, path: data/{name}-queue}}
  # state: {{kind: redis, url: {{env: REDIS_URL}}}}
  state: {{kind: sqlite, path: data/{name}-state.sqlite}}
  # store: {{kind: s3, bucket: archives, region: eu-central-1}}
  store: {{kind: local, path: data/object-store}}
"""
_PYTHON = """\
import dagster as dg
from fuploader_dagster import EmbeddedQueue, Local, Pipeline, QueueToObjectStore, SqliteState


@dg.component_instance
def load(context: dg.ComponentLoadContext) -> QueueToObjectStore:
    return QueueToObjectStore(
        Pipeline(
            name="{name}",
            source=EmbeddedQueue(path="data/{name}-queue"),
            state=SqliteState(path="data/{name}-state.sqlite"),
            store=Local(path="data/object-store"),
        )
    )
"""


class QueueToObjectStoreScaffolder(Scaffolder):
    """Writes a component that needs no server, named for its folder."""

    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        folder = request.target_path.parent if request.append else request.target_path
        name = pipeline_name(folder.name)
        if request.scaffold_format == "python":
            (folder / "component.py").write_text(_PYTHON.format(name=name), "utf-8")
            return
        text = _YAML.format(name=name, type_name=request.type_name)
        if request.append:
            with request.target_path.open("a", encoding="utf-8") as file:
                file.write(f"---\n{text}")
        else:
            (folder / "defs.yaml").write_text(text, "utf-8")


@dg.scaffold_with(QueueToObjectStoreScaffolder)
class QueueToObjectStore(dg.Component):
    """Drains a queue into slots, packs each into a verified archive, stores it in object storage.

    Builds the assets queue, sealed_slot, packed_archive and uploaded_archive (with a processor also
    processed_slot, with sinks also sink_NAME) with their partitions, jobs, sensors, schedules and
    store resource, all named for the pipeline. The attributes are the settings of a pipeline.
    """

    def __init__(self, pipeline: Pipeline, *, running: bool = True) -> None:
        self.pipeline = pipeline
        self.running = running

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return build_definitions(self.pipeline, running=self.running)

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        return dg.ComponentTypeSpec(
            description=" ".join((cls.__doc__ or "").split()),
            tags=["rabbitmq", "s3", "object storage"],
            produces=["asset", "asset_check", "job", "resource", "schedule", "sensor"],
        )

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The attributes as YAML has them, with the names and descriptions of the pipeline's."""
        return _Attributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        given = attributes.model_dump(exclude_unset=True) if attributes else {}
        values = _filled_in(given, context.resolution_context, where=str(context.path))
        running = values.pop("running", True)
        with relative_to(context.project_root):
            return cls(load_pipeline(values, where=str(context.path)), running=running)


def pipelines_of(documents: Sequence[dict[str, Any]], *, where: str) -> dict[str, Pipeline]:
    """By name, the pipelines of a component's file, for commands. Raises `ConfigError`."""
    found: dict[str, Pipeline] = {}
    for document in documents:
        if not _is_ours(document.get("type")):
            continue
        attributes = document.get("attributes") or {}
        if not isinstance(attributes, dict):
            raise ConfigError(f"{where}: attributes must be a mapping")
        try:
            values = _filled_in(attributes, dg.ResolutionContext.default(), where=where)
        except ConfigError:
            raise
        except USER_ERRORS as error:
            raise ConfigError(f"{where}: a template cannot be filled in: {error}") from None
        values.pop("running", None)
        with relative_to(_project_of(Path(where))):
            pipeline = load_pipeline(values, where=where)
        if pipeline.name in found:
            raise ConfigError(f"{where}: two components have the same name, {pipeline.name}")
        found[pipeline.name] = pipeline
    if not found:
        raise ConfigError(
            f"{where} has no component of type fuploader_dagster.QueueToObjectStore",
            hint="`dg scaffold defs fuploader_dagster.QueueToObjectStore NAME` writes one",
        )
    return found


def _filled_in(
    given: dict[str, Any], context: dg.ResolutionContext, *, where: str
) -> dict[str, Any]:
    """The attributes with Dagster's templates filled in. One that gives nothing is refused: Dagster
    would leave the setting out, and its default might mean another server."""
    refuse_shell_variables(given, where, templates=True)
    for place, text in texts_in(given):
        for template in _TEMPLATE.findall(text):
            if context.resolve_value(template) in (None, ""):
                raise ConfigError(
                    f"{where}: {'.'.join(map(str, place))}: the template {template} gives nothing",
                    hint="set its variable, or write {{ env('NAME', 'a default') }}; for a secret "
                    "{env: NAME} instead, which is needed only where the secret is used",
                )
    return dict(context.resolve_value(given))


def _project_of(file: Path) -> Path:
    """The folder of the project that a component's file belongs to, where Dagster is started."""
    above = file.absolute().parents
    marks = ("pyproject.toml", "dg.toml")
    return next((one for one in above if any((one / mark).exists() for mark in marks)), Path.cwd())


def _is_ours(type_name: Any) -> bool:
    """Whether a component's type is ours, or a class of somebody's that is made of it."""
    module, _, name = str(type_name).rpartition(".")
    try:
        found = load_reference(f"{module}:{name}")
    except ValueError:  # another component, which need not be importable here
        return False
    return isinstance(found, type) and issubclass(found, QueueToObjectStore)


def pipeline_name(folder: str) -> str:
    """A valid pipeline name, made of a folder's name."""
    name = re.sub(r"\W+", "_", folder.lower(), flags=re.ASCII).strip("_")[:64]
    return name if name[:1].isalpha() else f"pipeline_{name}".rstrip("_")


def _in_yaml(name: str, annotation: Any) -> Any:
    """The type of a setting in YAML."""
    if name in _IN_YAML:
        return _IN_YAML[name]
    if annotation in (bool, int, float):
        return annotation | str  # it may be a template
    return annotation if annotation is str or get_origin(annotation) is Literal else str | None


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return ...
    default = field.get_default(call_default_factory=True)
    return str(default) if isinstance(default, Path) else default


def _attributes() -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (
            _in_yaml(name, field.annotation),
            Field(_default(field), description=_described(name, field.description or "")),
        )
        for name, field in Pipeline.model_fields.items()
    }
    fields["failure_webhook"] = (
        _IN_YAML["alert_webhook"],
        Field(None, description="The old name of alert_webhook."),
    )
    fields["running"] = (bool, Field(True, description=_RUNNING))
    return create_model(
        "QueueToObjectStoreAttributes", __config__=ConfigDict(extra="forbid"), **fields
    )


def _described(name: str, description: str) -> str:
    role = "sink" if name == "sinks" else name
    if role not in KINDS:
        return description
    return f"{description} `kind` is {', '.join(KINDS[role])}, or `package.module:Class`."


_Attributes = _attributes()
