"""Loads pipelines from `fuploader.yaml` and the environment, and hands them to workers over a pipe.

A file looks like this; everything else has a default:

    storage_root: data
    pipelines:
      documents:
        source: {kind: rabbitmq, url: {env: RABBITMQ_URL}, queue: documents}
        state: {kind: redis, url: {env: REDIS_URL}}
        store: {kind: s3, bucket: archives, secret_access_key: {env: S3_SECRET}}

Settings beside `pipelines` apply to all of them. Environment variables win over the file. Those
that FUploader reads apply to all pipelines; `FUPLOADER_PIPELINES__DOCUMENTS__SEAL_MESSAGES=500`
applies to one, and wins over them too.

Strategies are imported from where Python finds modules, and from the folder of the file.

`kind` is a short name from `KINDS`, or `package.module:Class` for a backend of your own.

What must always hold: whatever is wrong raises a `ConfigError` that names the setting with its path
and says what would be right. No error quotes a value: it may be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from fuploader_dagster.contracts.functions import load_reference, reference_to
from fuploader_dagster.contracts.notifier import NotifierSettings
from fuploader_dagster.contracts.object_store import OpensObjectStore
from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.contracts.relative_paths import relative_to
from fuploader_dagster.contracts.sink import SinkSettings
from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.contracts.state import StateSettings
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.apart import overlaps, refuse_shared_folders
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from fuploader_dagster.settings.places import CONFIG_VARIABLE, DEFAULT_FILE
from fuploader_dagster.settings.secret import refuse_unset, unset_variables
from fuploader_dagster.settings.yaml_file import check_names, read_documents, refuse_shell_variables

log = logging.getLogger(__name__)

_OF_COMPONENTS = "fuploader_dagster.component:read_components"
"""Reads a component's file. Named, not imported, because it loads Dagster."""

KINDS: dict[str, dict[str, str]] = {
    "source": {
        "rabbitmq": "fuploader_dagster.resources.sources.rabbitmq.source:RabbitMQ",
        "embedded": "fuploader_dagster.resources.sources.embedded.source:EmbeddedQueue",
        "sql": "fuploader_dagster.resources.sources.sql.source:SqlTable",
        "redis_stream": "fuploader_dagster.resources.sources.redis_stream.source:RedisStream",
        "redis_list": "fuploader_dagster.resources.sources.redis_list.source:RedisList",
        "kafka": "fuploader_dagster.resources.sources.kafka.settings:Kafka",
    },
    "state": {
        "redis": "fuploader_dagster.resources.states.redis:RedisState",
        "sqlite": "fuploader_dagster.resources.states.sqlite:SqliteState",
    },
    "store": {
        "s3": "fuploader_dagster.resources.object_stores.s3:S3Settings",
        "cos": "fuploader_dagster.resources.object_stores.cos:COSSettings",
        "oss": "fuploader_dagster.resources.object_stores.oss:OSSSettings",
        "local": "fuploader_dagster.resources.object_stores.local:LocalSettings",
        "mirror": "fuploader_dagster.resources.object_stores.mirror:MirrorSettings",
    },
    "process": {
        "functions": "fuploader_dagster.processing.functions:Functions",
        "http": "fuploader_dagster.processing.http:HttpHandler",
        "fetch": "fuploader_dagster.fetching.settings:Fetch",
    },
    "notify": {
        "redis_list": "fuploader_dagster.resources.notifiers.redis_list:RedisListNotices",
        "webhook": "fuploader_dagster.resources.notifiers.webhook:WebhookNotices",
        "queue": "fuploader_dagster.resources.notifiers.queue:QueueNotices",
    },
    "sink": {
        "sql": "fuploader_dagster.resources.sinks.sql:SqlSink",
        "clickhouse": "fuploader_dagster.resources.sinks.clickhouse:ClickHouseSink",
        "redis_stream": "fuploader_dagster.resources.sinks.redis_stream:RedisStreamSink",
    },
}
_BASES: dict[str, type] = {
    "source": SourceSettings,
    "state": StateSettings,
    "store": OpensObjectStore,
    "process": ProcessorSettings,
    "notify": NotifierSettings,
    "sink": SinkSettings,
}
_FUPLOADER_VARIABLES = {
    "NODE_ID": "node_id",
    "META_WRITER_PROCESS_COUNT": "process_count",
    "META_WRITER_MAX_TASKS_PER_CHILD": "max_tasks_per_child",
    "META_WRITER_RABBITMQ_PREFETCH_COUNT": "prefetch_count",
    "RESIDUE_FILE_UPLOAD": "residue_file_upload",
    "RESIDUE_FILE_UPLOADE": "residue_file_upload",
}
"""FUploader reads the misspelled name first, so the last of the two wins here as well."""
_OVERRIDES = "FUPLOADER_PIPELINES"
_LEAST = {"process_count": 1, "max_tasks_per_child": 0, "prefetch_count": 2}
"""Like FUploader, raise smaller values to the minimum (its prefetch: 20; ours must be 2)."""
_NODE_ID_OF_WORKER = re.compile(r"-(meta|packer)-p.*")
"""What FUploader appends to the node's name in its worker processes."""


class _File(BaseModel):
    """The raw file; `Pipeline` validates the values."""

    model_config = ConfigDict(extra="allow")

    pipelines: dict[str, dict[str, Any]] = {}


def load_pipelines(path: Path | str | None = None) -> dict[str, Pipeline]:
    """All pipelines of a file (by default `$FUPLOADER_CONFIG`, else `./fuploader.yaml`).

    Relative paths in it are relative to the file. Pipelines that take from each other are logged.
    A Dagster component's file (`defs.yaml`) is read as Dagster reads it. Its process loads Dagster.
    Raises `ConfigError`, which names every wrong setting and never contains a secret.
    """
    found, wrong = read_pipelines(path)
    if wrong:
        raise ConfigError.of(wrong.values())
    refuse_shared_folders(found.values())
    for sentence in overlaps(found.values()):
        log.warning("%s: %s", _configuration(path), sentence)
    return found


def read_pipelines(
    path: Path | str | None = None,
) -> tuple[dict[str, Pipeline], dict[str, ConfigError]]:
    """The pipelines of a file that can be used, and what is wrong with the others, by name.

    Each is looked at alone. Raises `ConfigError` for what concerns all of them.
    """
    path = _configuration(path)
    raw, *more = read_documents(path)
    _make_importable(path.absolute().parent)
    if "type" in raw and "pipelines" not in raw:
        of_components = load_reference(_OF_COMPONENTS)  # loads Dagster, which fills in templates
        of_file: tuple[dict[str, Pipeline], dict[str, ConfigError]]
        of_file = of_components([raw, *more], where=str(path))
        return of_file
    if more:
        raise ConfigError(f"{path} has several documents of YAML, of which only one can be read")
    unchanged = raw.get("pipelines")
    refuse_shell_variables({k: v for k, v in raw.items() if k != "pipelines"}, str(path))
    of_fuploader = _fuploader_environment(os.environ)
    if isinstance(unchanged, dict):  # the pipeline's own variables win over these
        raw["pipelines"] = {
            name: {**values, **of_fuploader} if isinstance(values, dict) else values
            for name, values in unchanged.items()
        }
    try:
        values_of, beside = _overridden(raw)
    except ValidationError as error:
        raise config_error(error, str(path)) from None
    shared = {**beside, **of_fuploader}
    if not values_of:
        raise ConfigError(
            f"{path} defines no pipeline",
            hint="add one below `pipelines:`, or write an example with `fuploader init`",
        )
    found: dict[str, Pipeline] = {}
    wrong: dict[str, ConfigError] = {}
    with relative_to(path.parent):
        for name, values in values_of.items():
            said: list[ConfigError] = []
            given = unchanged.get(name) if isinstance(unchanged, dict) else None
            try:
                refuse_shell_variables({"pipelines": {name: given}}, str(path))
            except ConfigError as error:
                said.append(error)
            try:
                pipeline = load_pipeline(
                    {**shared, **values, "name": name}, where=f"{path}: pipelines.{name}"
                )
                _refuse_former_folder(pipeline, path.parent.resolve())
            except ConfigError as error:
                said.append(error)
            if said:
                wrong[name] = ConfigError.of(said)
            else:
                found[name] = pipeline
    return found, wrong


def _configuration(path: Path | str | None) -> Path:
    return Path(path or os.environ.get(CONFIG_VARIABLE, DEFAULT_FILE))


def _refuse_former_folder(pipeline: Pipeline, folder: Path) -> None:
    """Earlier versions took relative paths from the working folder. A pipeline whose data is there
    must not begin again elsewhere."""
    here = Path.cwd()
    if here == folder or (here / DEFAULT_FILE).exists():  # another project's
        return
    root = pipeline.layout.root
    if root.is_relative_to(folder) and not root.exists():
        former = here / root.relative_to(folder)
        if former.exists():
            raise ConfigError(
                f"the data of pipeline {pipeline.name} is in {former}, but its storage_root now "
                f"means {root.parent}: relative paths are relative to the configuration file",
                hint="move the data there, or write the absolute path as storage_root (and those "
                "of an embedded queue, a state file and a local store)",
            )


def _overridden(raw: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The values of each pipeline, and those beside `pipelines`; the environment's own win."""
    if any(name.upper().startswith(_OVERRIDES) for name in os.environ):
        from fuploader_dagster.settings.environment import overridden  # noqa: PLC0415

        return overridden(raw)
    file = _File(**raw)
    return file.pipelines, file.model_extra or {}


def _make_importable(folder: Path) -> None:
    """Strategies may be beside the file that names them; what is installed comes first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def load_pipeline(values: Mapping[str, Any], *, where: str) -> Pipeline:
    """One pipeline from plain values. Raises `ConfigError`, which names every wrong setting;
    `where` says whose they are."""
    check_names(values, where)
    backends: dict[str, Any] = {}
    wrong: dict[str, ConfigError] = {}

    def read(setting: str, how: Callable[[Any, str], Any]) -> None:
        try:
            backends[setting] = how(values.get(setting), f"{where}.{setting}")
        except ConfigError as error:
            wrong[setting] = error

    for role in ("source", "state", "store", "process"):
        if role != "process" or values.get(role) is not None:
            read(role, partial(load_backend, role))
    for setting, how in _SEVERAL.items():
        if setting in values:
            read(setting, how)
    # What could not be read stands there as nothing that the model takes, and is said already.
    unread = dict.fromkeys(wrong, object())
    try:
        return Pipeline(**{**values, **backends, **unread})
    except ValidationError as error:
        said = _complaints(error, Pipeline, without=wrong)
        others = [ConfigError(f"{where}: {'; '.join(said)}")] if said else []
    except ConfigError as error:
        others = [ConfigError(f"{where}: {error.message}", hint=error.hint)]
    raise ConfigError.of([*wrong.values(), *others])


def _sinks(values: Any, where: str) -> dict[str, Any]:
    sinks = values or {}
    if not isinstance(sinks, Mapping):
        raise ConfigError(f"{where} must be a mapping: a name for each sink")
    check_names(sinks, where)
    return {name: load_backend("sink", one, f"{where}.{name}") for name, one in sinks.items()}


def _former_stores(values: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise ConfigError(f"{where} must be a list of stores")
    return tuple(
        load_backend("store", one, f"{where}.{number}") for number, one in enumerate(values)
    )


def _notifiers(values: Any, where: str) -> tuple[Any, ...]:
    """One, or a list of several."""
    if values is None:
        return ()
    if isinstance(values, list):
        return tuple(
            load_backend("notify", one, f"{where}.{number}") for number, one in enumerate(values)
        )
    return (load_backend("notify", values, where),)


_SEVERAL: Mapping[str, Callable[[Any, str], Any]] = {
    "sinks": _sinks,
    "notify": _notifiers,
    "former_stores": _former_stores,
}
"""How settings are read that have several backends."""


def load_backend(role: str, values: Any, where: str) -> Any:
    """A backend from a mapping with its `kind`. Its role is one of `KINDS`.

    Raises `ConfigError`; `where` says whose settings they are.
    """
    hint = f"kinds are {', '.join(KINDS[role])}, or package.module:Class"
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str):
        raise ConfigError(f"{where} must be a mapping with a `kind`", hint=hint)
    check_names(values, where)
    try:
        backend = load_reference(KINDS[role].get(kind, kind))
    except ValueError as error:
        near = difflib.get_close_matches(kind, KINDS[role], n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{where}.kind: {error}", hint=meant + hint) from None
    base = _BASES[role]
    if not (isinstance(backend, type) and issubclass(backend, base)):
        raise ConfigError(f"{where}.kind: {kind} does not implement {base.__name__}", hint=hint)
    try:
        return backend(**{name: value for name, value in values.items() if name != "kind"})
    except ValidationError as error:
        raise config_error(error, where, backend) from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None


def dump_intake(intake: Intake) -> bytes:
    """Settings as one line of JSON, including secrets: only for a worker's stdin.

    Raises `ConfigError` if the variable of a secret is not set.
    """
    refuse_unset(unset_variables(intake))
    plain = intake.model_dump(
        mode="json", exclude={"source", "state"}, context={"reveal_secrets": True}
    )
    for role in ("source", "state"):
        plain[role] = _dump_backend(getattr(intake, role))
    return msgspec.json.encode(plain)


def load_intake(line: bytes) -> Intake:
    """What `dump_intake` wrote."""
    values = msgspec.json.decode(line, type=dict[str, Any])
    for role in ("source", "state"):
        values[role] = load_backend(role, values[role], role)
    try:
        return Intake(**values)
    except ValidationError as error:
        raise config_error(error, f"pipeline {values.get('name')}") from None


def _dump_backend(backend: BaseModel) -> dict[str, Any]:
    dumped = backend.model_dump(mode="json", exclude_unset=True, context={"reveal_secrets": True})
    return {"kind": reference_to(type(backend)), **dumped}


def names_below(model: Any, place: Sequence[int | str]) -> list[str]:
    """The names of the settings at a place in a model; none where it is not known."""
    for part in place:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            model = _model_in(field.annotation)
    return list(getattr(model, "model_fields", ()))


def _model_in(annotation: Any) -> Any:
    """The model in a type such as `Status | None` or `list[Status]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def config_error(
    error: ValidationError, where: str, model: Any = None, *, hint: str = ""
) -> ConfigError:
    """All complaints, one sentence each, without the values (they may be secrets)."""
    return ConfigError(f"{where}: " + "; ".join(_complaints(error, model)), hint=hint)


def _complaints(error: ValidationError, model: Any, without: Container[str] = ()) -> list[str]:
    """All complaints, but of these settings."""
    complaints = []
    for detail in error.errors(include_input=False, include_url=False, include_context=False):
        if detail["loc"] and detail["loc"][0] in without:
            continue
        place = ".".join(str(part) for part in detail["loc"])
        said = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            *above, name = detail["loc"]
            near = difflib.get_close_matches(str(name), names_below(model, above), n=1)
            said = "there is no such setting" + (f", did you mean {near[0]}?" if near else "")
        if variables := _set_by(place):
            place = f"{place} (from {variables} in the environment)"
        complaints.append(f"{place}: {said}" if place else said)
    return complaints


def _set_by(setting: str) -> str:
    """The variables of FUploader's that set this setting, if any."""
    return " or ".join(
        variable
        for variable, name in _FUPLOADER_VARIABLES.items()
        if name == setting and os.environ.get(variable, "").strip()
    )


def _fuploader_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """FUploader's variables as settings of ours. Empty ones count as unset, as in FUploader."""
    found: dict[str, Any] = {
        setting: environment[variable].strip()
        for variable, setting in _FUPLOADER_VARIABLES.items()
        if environment.get(variable, "").strip()
    }
    for setting, least in _LEAST.items():
        with suppress(ValueError, KeyError):  # the model reports a value that is no number
            found[setting] = max(least, int(found[setting]))
    if "node_id" in found:
        found["node_id"] = _NODE_ID_OF_WORKER.sub("", found["node_id"])
    return found
