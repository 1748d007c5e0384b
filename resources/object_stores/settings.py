"""ObjectStoreSettings: the settings of an object store, and how it is opened. Without Dagster.

What must always hold:

- A secret is given as the name of an environment variable (`{env: NAME}` in YAML, `EnvVar("NAME")`
  in Python), because Dagster's UI shows a resource's configuration to everybody. A literal is
  refused.
- An address with a login or a query in it (`https://user:password@host`) is a secret too.
- No secret is in a repr, an error or `describe()`; validation errors do not quote values.

`open()` returns the connected store with retries around it. In a run, Dagster has already replaced
the variables by their values; elsewhere (command line, workers) `open()` does so.

Importing Dagster takes longer than most commands. So a configuration file is loaded as these
settings, and `resource.as_resource` turns them into Dagster resources where Dagster is used.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import Self

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.contracts.settings import Settings
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.secret import without_logins

_LOGIN = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://)?(?:[^/?#]*@|[^?#]*\?)")


class Variable(str):
    """The name of an environment variable instead of a value, like Dagster's `EnvVar`."""

    __slots__ = ()

    @property
    def env_var_name(self) -> str:
        return str.__str__(self)


class ObjectStoreSettings(Settings):
    """The settings that every backend has.

    `SECRETS` names the fields that must be variables, `ADDRESSES` those that may hold a login.
    """

    SECRETS: ClassVar[frozenset[str]] = frozenset()
    ADDRESSES: ClassVar[frozenset[str]] = frozenset()

    retry_budget_seconds: float = Field(default=300, ge=0)
    """How long to go on retrying after the last progress. 0: try once."""

    def __init__(self, **values: Any) -> None:
        values = {name: as_variable(value) for name, value in values.items()}
        for name in sorted(self.SECRETS & values.keys()):
            _refuse_literal(self.kind(), name, values[name], "given literally")
        for name in sorted(self.ADDRESSES & values.keys()):
            if isinstance(values[name], str) and _LOGIN.match(values[name]):
                _refuse_literal(self.kind(), name, values[name], "given with a login or a query")
        super().__init__(**values)
        # Validation has turned our variables into plain text. (Dagster keeps its own.)
        self.__dict__.update(
            {name: value for name, value in values.items() if isinstance(value, Variable)}
        )

    @abstractmethod
    def connect(self) -> ObjectStore:
        """The store without retries, from settings whose variables are resolved. Sends nothing.

        Raises `ConfigError` if the client library is missing or a setting is impossible.
        """

    @abstractmethod
    def describe(self) -> str:
        """Address in words, without secrets, for logs and error messages."""

    def examine(self) -> Iterator[Diagnosis]:
        """More findings for `fuploader doctor`, beyond those about the store. Sends nothing."""
        yield from ()

    @classmethod
    def kind(cls) -> str:
        """The backend's name for people: `S3`."""
        return cls.__name__.removesuffix("Settings")

    def open(self) -> ObjectStore:
        """The connected store with retries around it.

        Raises `ConfigError` if an environment variable is not set, and names it.
        """
        from fuploader_dagster.resources.object_stores.retrying import (  # noqa: PLC0415
            RetryingObjectStore,  # loads tenacity, which loading settings must not do
        )

        settings = self.resolved()
        return RetryingObjectStore(settings.connect(), budget_seconds=self.retry_budget_seconds)

    def resolved(self) -> Self:
        """The same settings with the values of the environment variables."""
        values = {
            name: _value_of(self.kind(), name, variable)
            for name, value in self.__dict__.items()
            if (variable := variable_name(value)) is not None
        }
        return self.model_copy(update=values) if values else self

    def shown(self, name: str) -> str:
        """A field for `describe()`: a variable shows its name."""
        value = getattr(self, name)
        variable = variable_name(value)
        return self._plain(name, str(value)) if variable is None else f"${{{variable}}}"

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            plain = isinstance(value, str) and variable_name(value) is None
            yield name, self._plain(name or "", value) if plain else value

    def _plain(self, name: str, text: str) -> str:
        """The text without a login. An address may have one without `//` before it."""
        if name in self.ADDRESSES and "//" not in text and "@" in text:
            return f"***@{text.rpartition('@')[2]}"
        return without_logins(text)


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


def variable_name(value: Any) -> str | None:
    """The name of a variable, ours or Dagster's; None for any other value."""
    name: str | None = getattr(value, "env_var_name", None)
    return name


def as_variable(value: Any) -> Any:
    """`{env: NAME}`, as it comes from YAML, becomes a variable."""
    if isinstance(value, dict) and value.keys() == {"env"} and isinstance(value["env"], str):
        return Variable(value["env"])
    return value


def _refuse_literal(settings: str, name: str, value: Any, how: str) -> None:
    # When Dagster initialises a resource it constructs it again with the values that it found in
    # the environment; those must pass. Anything else is a literal.
    if value is None or variable_name(value) is not None or value in os.environ.values():
        return
    raise ConfigError(
        f"{settings}.{name} is {how}; Dagster's UI would show it",
        hint=f"set an environment variable and name it: {name}: {{env: NAME}}, "
        f'or in Python EnvVar("NAME")',
    )


def _value_of(settings: str, name: str, variable: str) -> str:
    value = os.environ.get(variable)
    if value is None:
        raise ConfigError(
            f"environment variable {variable} is not set",
            hint=f"{settings}.{name} takes its value from it",
        )
    return value
