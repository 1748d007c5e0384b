"""User functions: plain functions that settings name, as objects or as `package.module:function`.

Other processes import them by name: no lambdas, no nested functions.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

USER_ERRORS = (Exception, SystemExit)
"""What a user's function may raise. Includes `sys.exit()`, which would end the worker, and the next
one too, because the same message comes again."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load_reference(reference: str) -> Any:
    """The object that `package.module:name` names. Raises `ValueError`, saying what is wrong."""
    if not _REFERENCE.fullmatch(reference):
        raise ValueError("it is not of the form package.module:name")  # not shown: may be a secret
    module_name, _, qualified_name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"cannot import {module_name!r}: {raised(error)}") from error
    for part in qualified_name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"module {module_name!r} has no {qualified_name!r}")
        found = getattr(found, part)
    return found


def reference_to(function: Any) -> str:
    """The `package.module:name` of a function or class. Raises `ValueError` if it has none."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not module or not name or module == "__main__" or "<" in name:
        raise ValueError(
            f"{name or f'an object of type {type(function).__name__}'} cannot be imported by a "
            f"worker process; define a function at the top level of a module that can be imported"
        )
    reference = f"{module}:{name}"
    if load_reference(reference) != function:
        raise ValueError(f"{reference} is a different object from the one given")
    return reference


def as_function(value: Any) -> Any:
    function = load_reference(value) if isinstance(value, str) else value
    if not callable(function):
        raise ValueError("it is neither a function nor the package.module:name of one")
    reference_to(function)
    return function


Strategy = Annotated[
    Callable[..., Any],
    BeforeValidator(as_function),
    PlainSerializer(reference_to, return_type=str),
]
"""A user's function in a settings model; serialises to its `package.module:name`."""


def raised(error: BaseException) -> str:
    """A user function's exception as text that every log and file can hold."""
    text = f"{type(error).__name__}: {error}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def name_of(function: Callable[..., Any]) -> str:
    """The name by which a user finds the function."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return f"{function.__module__}:{function.__qualname__}"
