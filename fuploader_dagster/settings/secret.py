"""Secrets in settings: given as `{env: NAME}`, read at load, never shown.

Sources and state stores also accept a literal: their settings never leave this process tree
unmasked. Dagster's `EnvVar("NAME")` is accepted too.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, SecretStr, SerializationInfo


def _from_environment(value: Any) -> Any:
    name = getattr(value, "env_var_name", None)  # dagster.EnvVar, without importing dagster
    if isinstance(value, dict) and set(value) == {"env"}:
        name = value["env"]
    if name is None:
        return value
    if name not in os.environ:
        raise ValueError(f"environment variable {name} is not set")
    return os.environ[name]


def _reveal_if_asked(value: SecretStr, info: SerializationInfo) -> str:
    revealed = bool(info.context and info.context.get("reveal_secrets"))
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
