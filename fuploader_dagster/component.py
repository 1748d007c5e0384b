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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, create_model
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema
from typing_extensions import Self

from fuploader_dagster.component_scaffolder import QueueToObjectStoreScaffolder
from fuploader_dagster.contracts.functions import USER_ERRORS, load_reference
from fuploader_dagster.contracts.relative_paths import relative_to
from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.loading import KINDS, load_pipeline
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.schema import attribute
from fuploader_dagster.settings.yaml_file import refuse_shell_variables, texts_in


@dataclass(frozen=True)
class _Attribute:
    """Says in the schema what a setting may be; the pipeline's model checks it. The models of all
    kinds are loaded for it, but only when a tool of Dagster's asks for the schema."""

    setting: str

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> Any:
        return attribute(self.setting)


_TEMPLATE = re.compile(r"\{\{.*?\}\}", re.S)
_RUNNING = "Sensors and schedules are on as soon as Dagster loads them."


@dg.scaffold_with(QueueToObjectStoreScaffolder)
class QueueToObjectStore(dg.Component):
    """Drains a queue into slots, packs each into a verified archive, stores it in object storage.

    Builds the assets queue, sealed_slot, packed_archive and uploaded_archive (with a processor also
    processed_slot, with sinks also sink_NAME) with their partitions, jobs, sensors, schedules and
    resources, all named for the pipeline. The attributes are the settings of a pipeline.
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


def read_components(
    documents: Sequence[dict[str, Any]], *, where: str
) -> tuple[dict[str, Pipeline], dict[str, ConfigError]]:
    """The pipelines of a component's file that can be used, and what is wrong with the others, by
    name, for commands. Raises `ConfigError` if there are none."""
    found: dict[str, Pipeline] = {}
    wrong: dict[str, ConfigError] = {}
    for number, document in enumerate(documents, 1):
        if not _is_ours(document.get("type")):
            continue
        attributes = document.get("attributes") or {}
        name = attributes.get("name") if isinstance(attributes, dict) else None
        name = name if isinstance(name, str) else f"component {number}"
        try:
            pipeline = _pipeline_of(attributes, where)
        except ConfigError as error:
            wrong[name] = error
            continue
        if pipeline.name in found:
            said = f"{where}: two components have the same name, {pipeline.name}"
            wrong[pipeline.name] = ConfigError(said)
        found[pipeline.name] = pipeline
    if not found and not wrong:
        raise ConfigError(
            f"{where} has no component of type fuploader_dagster.QueueToObjectStore",
            hint="`dg scaffold defs fuploader_dagster.QueueToObjectStore NAME` writes one",
        )
    return found, wrong


def _pipeline_of(attributes: Any, where: str) -> Pipeline:
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
        return load_pipeline(values, where=where)


def _filled_in(
    given: dict[str, Any], context: dg.ResolutionContext, *, where: str
) -> dict[str, Any]:
    """The attributes with Dagster's templates filled in. One that gives nothing is refused: Dagster
    would leave the setting out, and its default might mean another server."""
    refuse_shell_variables(given, where, templates=True)
    empty = []
    for place, text in texts_in(given):
        for template in _TEMPLATE.findall(text):
            if context.resolve_value(template) in (None, ""):
                said = (
                    f"{where}: {'.'.join(map(str, place))}: the template {template} gives nothing"
                )
                hint = "set its variable, or write {{ env('NAME', 'a default') }}; for a secret "
                hint += "{env: NAME} instead, which is needed only where the secret is used"
                empty.append(ConfigError(said, hint=hint))
    if empty:
        raise ConfigError.of(empty)
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


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return ...
    default = field.get_default(call_default_factory=True)
    return str(default) if isinstance(default, Path) else default


def _attributes() -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (
            Annotated[Any, _Attribute(name)],
            Field(_default(field), description=_described(name, field.description or "")),
        )
        for name, field in Pipeline.model_fields.items()
    }
    fields["failure_webhook"] = (
        Annotated[Any, _Attribute("alert_webhook")],
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
