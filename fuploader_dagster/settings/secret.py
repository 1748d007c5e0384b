"""Secrets in settings: given as `{env: NAME}`, read at load, never shown.

A literal is accepted for sources and state stores, whose settings never leave this process tree
in the open. Dagster's `EnvVar("NAME")` is accepted as well.
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

`model_dump(context={"reveal_secrets": True})` gives the value itself: used only to hand settings
to a worker process through its stdin.
"""


_LOGIN = re.compile(r"(?<=//)[^/?#\s]*@")


def without_logins(text: str) -> str:
    """The text with `***@` for the login of each address in it: `https://user:password@host`."""
    return _LOGIN.sub("***@", text)


def shown_cause(error: BaseException) -> BaseException | None:
    """What to `raise ... from`: the error, or None if it or what led to it repeats a login.

    Tracebacks and Dagster's UI show causes in their own words.
    """
    cause: BaseException | None = error
    while cause is not None:
        if without_logins(str(cause)) != str(cause):
            return None
        cause = cause.__cause__ or cause.__context__
    return error
