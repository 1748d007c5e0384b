"""Secrets in settings: given as `{env: NAME}`, read at load, never shown.

A variable that is not set is an error where the secret is used, not at load: so a configuration can
be checked where its secrets are not (`fuploader lint`, `dg check defs` in CI).

Sources and state stores also accept a literal: their settings never leave this process tree
unmasked. Dagster's `EnvVar("NAME")` is accepted too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, PlainSerializer, SecretStr, SerializationInfo

from fuploader_dagster.errors import ConfigError


class UnsetSecret(SecretStr):
    """A secret whose variable was not set when the configuration was loaded."""

    def __init__(self, variable: str) -> None:
        super().__init__("")
        self.variable = variable

    def get_secret_value(self) -> str:
        """Raises `ConfigError`, which names the variable."""
        raise ConfigError(
            f"environment variable {self.variable} is not set",
            hint="the configuration takes a secret from it; set it for this process",
        )

    def _display(self) -> str:
        return f"${{{self.variable}}}"

    __str__ = _display

    def __repr__(self) -> str:
        return f"UnsetSecret({self.variable!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnsetSecret) and other.variable == self.variable

    def __hash__(self) -> int:
        return hash(self.variable)

    def __len__(self) -> int:
        return 0


def place_of_unset(*secrets: SecretStr | None) -> str:
    """For validators, and in place of an address: `$NAME` of the first of them whose variable is
    not set; empty if each has a value."""
    return next((f"${one.variable}" for one in secrets if isinstance(one, UnsetSecret)), "")


def unset_variables(value: Any) -> Iterator[str]:
    """The names of the variables that settings lack, however deep they are."""
    if isinstance(value, UnsetSecret):
        yield value.variable
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from unset_variables(getattr(value, name))
    elif isinstance(value, dict):
        yield from unset_variables(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from unset_variables(one)


def refuse_unset(variables: Iterable[str]) -> None:
    """Raise `ConfigError` if there is one."""
    for variable in variables:
        UnsetSecret(variable).get_secret_value()


def _from_environment(value: Any) -> Any:
    name = getattr(value, "env_var_name", None)  # dagster.EnvVar, without importing dagster
    if isinstance(value, dict) and set(value) == {"env"}:
        name = value["env"]
    if name is None:
        return value
    if name not in os.environ:
        return UnsetSecret(str(name))
    return os.environ[name]


def _reveal_if_asked(value: SecretStr, info: SerializationInfo) -> str:
    revealed = bool(info.context and info.context.get("reveal_secrets"))
    # `dump_intake` has refused one that is not set: an error here would lose its sentence
    return value.get_secret_value() if revealed else "**********"


Secret = Annotated[
    SecretStr,
    BeforeValidator(_from_environment),
    PlainSerializer(_reveal_if_asked, return_type=str),
]
"""A string that repr, logs and errors show as asterisks.

`model_dump(context={"reveal_secrets": True})` gives the value itself, only to hand settings to a
worker process through its stdin.
"""


_LOGIN = re.compile(r"(?<=//)[^/?#\s]*@")


def without_logins(text: str) -> str:
    """The text with `***@` in place of each login: `https://user:password@host`."""
    return _LOGIN.sub("***@", text)


def shown_cause(error: BaseException) -> BaseException | None:
    """What to `raise ... from`: the error, or None if it or one of its causes contains a login.

    Tracebacks and Dagster's UI show the causes' own text.
    """
    cause: BaseException | None = error
    while cause is not None:
        if without_logins(str(cause)) != str(cause):
            return None
        cause = cause.__cause__ or cause.__context__
    return error
