"""ObjectStoreResource: an object store as a Dagster resource, usable without Dagster as well.

What must always hold:

- A secret is given as the name of an environment variable (`EnvVar("NAME")`, or `{env: NAME}` in
  YAML), because Dagster's UI shows a resource's configuration to everybody. A literal is refused.
- No secret is in a repr, an error or `describe()`; validation errors do not quote what they got.
- A field that does not exist is an error, not something that is silently ignored.

`open()` gives the connected store with retries around it. Inside a run Dagster has replaced the
variables by their values before; outside (CLI, worker processes) `open()` does it. A host project
adds a backend by subclassing this and implementing `connect` and `describe`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import dagster as dg
from dagster import EnvVar
from pydantic import ConfigDict, Field
from typing_extensions import Self

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.object_stores.retrying import RetryingObjectStore
from fuploader_dagster.storage import ObjectStore


class ObjectStoreResource(dg.ConfigurableResource[Any], ABC):
    """What every backend has in common. `SECRETS` names the fields that must be variables."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    SECRETS: ClassVar[frozenset[str]] = frozenset()

    retry_budget_seconds: float = Field(
        default=300,
        ge=0,
        description="How long to go on trying after the last progress. 0: try once.",
    )

    def __init__(self, **values: Any) -> None:
        values = {name: _as_variable(value) for name, value in values.items()}
        for name in sorted(self.SECRETS & values.keys()):
            _refuse_literal(type(self).__name__, name, values[name])
        super().__init__(**values)

    @abstractmethod
    def connect(self) -> ObjectStore:
        """The bare store, of settings whose variables are resolved. Sends no request yet.

        Raises `ConfigError` if the client library is missing or a setting is impossible.
        """

    @abstractmethod
    def describe(self) -> str:
        """Address in words, without secrets, for logs and error messages."""

    def open(self) -> ObjectStore:
        """The store behind the setting, with retries around it.

        Raises `ConfigError`, naming it, if an environment variable is not set.
        """
        settings = self.resolved()
        return RetryingObjectStore(settings.connect(), budget_seconds=self.retry_budget_seconds)

    def resolved(self) -> Self:
        """The same settings with the environment's values in place of variables."""
        values = {
            name: _value_of(type(self).__name__, name, value)
            for name, value in self.__dict__.items()
            if isinstance(value, EnvVar)
        }
        return self.model_copy(update=values) if values else self

    def shown(self, name: str) -> str:
        """A field for `describe()`: a variable shows its name."""
        value = getattr(self, name)
        return f"${{{value.env_var_name}}}" if isinstance(value, EnvVar) else str(value)


@contextmanager
def needing(library: str, *, extra: str) -> Iterator[None]:
    """Around a backend's import: a missing client library becomes the command to install it."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"this object store needs {library}, which cannot be imported: {error}",
            hint=f"pip install 'fuploader-dagster[{extra}]'",
        ) from error


def _as_variable(value: Any) -> Any:
    """`{env: NAME}`, as it comes from YAML, becomes `EnvVar("NAME")`."""
    if isinstance(value, dict) and value.keys() == {"env"} and isinstance(value["env"], str):
        return EnvVar(value["env"])
    return value


def _refuse_literal(settings: str, name: str, value: Any) -> None:
    # When Dagster initialises a resource it constructs it anew with the values that it found in
    # the environment; those must pass. Anything else is somebody's literal.
    if value is None or isinstance(value, EnvVar) or value in os.environ.values():
        return
    raise ConfigError(
        f"{settings}.{name} is given literally; Dagster's UI would show it",
        hint=f"set an environment variable and name it: {name}: {{env: NAME}}, "
        f'or in Python EnvVar("NAME")',
    )


def _value_of(settings: str, name: str, variable: EnvVar) -> str:
    value = variable.get_value()
    if value is None:
        raise ConfigError(
            f"environment variable {variable.env_var_name} is not set",
            hint=f"{settings}.{name} takes its value from it",
        )
    return value
