"""A pipeline's queue, state store and object store as resources, and what stands in for them.

`documents_queue` and `documents_state` are resources whose value is the plain settings: workers
need them without Dagster (docs/decisions/0023-queue-and-state-as-resources.md). Jobs, sensors and
schedules take them from their context, so a test, or the config of a run, can put others in their
place. The workers that the drain sensor starts get what it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import dagster as dg
from pydantic import SecretStr, ValidationError

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.object_store import OpensObjectStore
from fuploader_dagster.contracts.settings import Settings
from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.contracts.state import StateSettings
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.loading import config_error
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.secret import without_logins

_TYPES: dict[type, Any] = {bool: bool, int: int, float: float, str: str}


class _HasResources(Protocol):
    @property
    def resources(self) -> Any: ...


def queue_and_state(pipeline: Pipeline) -> set[str]:
    """The resource keys that `with_resources` looks for.

    Where a sensor or schedule is called as a function, as tests do, Dagster passes the resources by
    name too: it takes them as `**_`.
    """
    names = Names.of(pipeline)
    return {names.queue_resource, names.state_resource}


def with_resources(pipeline: Pipeline, context: _HasResources) -> Pipeline:
    """The pipeline with the queue and the state store that the context has for it.

    Raises `ConfigError` if a resource is something else.
    """
    names, resources = Names.of(pipeline), context.resources
    source = _resource(resources, names.queue_resource, pipeline.source, SourceSettings, "a queue")
    state = _resource(resources, names.state_resource, pipeline.state, StateSettings, "a state")
    if source is pipeline.source and state is pipeline.state:
        return pipeline
    return pipeline.model_copy(update={"source": source, "state": state})


def object_store_of(resources: Any, pipeline: Pipeline) -> OpensObjectStore:
    """The store that the resources have for the pipeline. Raises `ConfigError` as above."""
    key = Names.of(pipeline).store
    found: OpensObjectStore = _resource(
        resources, key, pipeline.store, OpensObjectStore, "an object store"
    )
    return found


def _resource(resources: Any, key: str, own: Any, wanted: Any, what: str) -> Any:
    """The resource of this key; without one the pipeline's own, as where Dagster is not asked."""
    found = getattr(resources, key, own)
    if isinstance(found, wanted):
        return found
    raise ConfigError(
        f"the resource {key} is {_article(type(found).__name__)}, which is not {what}",
        hint=f"give it settings like the pipeline's own, {type(own).__name__}(...), or leave "
        f"the resource out",
    )


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def build_backend_resource(settings: Settings) -> dg.ResourceDefinition:
    """The resource of a queue or a state store: its value is the settings.

    The UI shows what was set; a secret as its variable or as asterisks. The config of a run can
    change each but a secret, for that run.
    """
    shown = _shown(settings)

    def backend(context: dg.InitResourceContext) -> Settings:
        config: Mapping[str, Any] = context.resource_config or {}
        changed = {name: value for name, value in config.items() if value != shown.get(name)}
        return _changed(settings, changed) if changed else settings

    backend.__name__ = backend.__qualname__ = type(settings).__name__
    backend.__module__ = type(settings).__module__
    described = getattr(settings, "describe", str)()
    return dg.ResourceDefinition(
        resource_fn=backend,
        config_schema={
            name: dg.Field(_TYPES.get(type(value), dg.Any), default_value=value, is_required=False)
            for name, value in shown.items()
        },
        description=f"{described}. Its value is the settings, {type(settings).__name__}.",
    )


def _changed(settings: Settings, changed: Mapping[str, Any]) -> Settings:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    try:
        return type(settings)(**{**given, **changed})
    except ValidationError as error:
        raise config_error(
            error,
            "the config of the resource cannot be used",
            type(settings),
            hint="the resource's page in the UI shows what is set without it",
        ) from None


def _shown(settings: Settings) -> dict[str, Any]:
    """What was set, without secrets, as config that Dagster can show."""
    values = {name: getattr(settings, name) for name in sorted(settings.model_fields_set)}
    return {name: _plain(settings, name, value) for name, value in values.items()}


def _plain(settings: Settings, name: str, value: Any) -> Any:
    if isinstance(value, SecretStr):
        return str(value)
    plain = settings.model_dump(mode="json", include={name}).get(name)
    return without_logins(plain) if isinstance(plain, str) else plain
