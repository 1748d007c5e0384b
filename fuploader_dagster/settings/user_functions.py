"""User functions, called strategies in docs and settings: parser, file name generator, packer and
key generator.

They are plain functions, given as objects in Python or as `package.module:function` in YAML.
Workers are separate processes that import them by name: no lambdas, no nested functions.

A parser or name generator that raises, or returns something unusable, makes its message a
`BadMessage`; a packer or key generator that does so gives its slot a `StrategyError`. Nothing else
stops.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import re
import string
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, PlainSerializer

from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import StrategyError

USER_ERRORS = (Exception, SystemExit)
"""What a user's function may raise. Includes `sys.exit()`, which would end the worker, and the next
one too, because the same message comes again."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_KEY_FIELDS = {"pipeline", "node", "slot", "number", "sealed_at", "partition", "archive"}
_MAX_KEY_BYTES = 1024
"""S3 and COS allow 1,024 bytes of UTF-8, OSS 1,023."""
_SAMPLE = PartitionKey(datetime(2026, 1, 1, tzinfo=timezone.utc), "node", 0, 1)


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


def _as_function(value: Any) -> Any:
    function = load_reference(value) if isinstance(value, str) else value
    if not callable(function):
        raise ValueError("it is neither a function nor the package.module:name of one")
    reference_to(function)
    return function


Strategy = Annotated[
    Callable[..., Any],
    BeforeValidator(_as_function),
    PlainSerializer(reference_to, return_type=str),
]
"""A user's function in a settings model; serialises to its `package.module:name`."""


def as_key_strategy(key: Any) -> Any:
    """A key setting as a checked template or a function. Raises `ValueError`."""
    if not isinstance(key, str) or (":" in key and "{" not in key):
        return _as_function(key)
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(key) if field is not None}
    except ValueError as error:
        raise ValueError(f"key template is malformed: {error}") from error
    if unknown := fields - _KEY_FIELDS:
        raise ValueError(
            f"key template has unknown fields {sorted(unknown)}; known are {sorted(_KEY_FIELDS)}"
        )
    if not fields & {"archive", "partition"}:
        raise ValueError(
            "key template must contain {archive} or {partition}, "
            "otherwise several archives would get the same key"
        )
    try:  # a template that fails here would fail at every seal
        archive = f"{_SAMPLE}.tar.zst"
        made = _fill(key, pipeline="p", partition=_SAMPLE, archive=archive, zone=timezone.utc)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"key template cannot be filled in: {error}") from error
    if problem := _problem_of_key(made):
        raise ValueError(f"key template makes unusable keys: {problem}")
    return key


def _written_key(key: Any) -> str:
    return key if isinstance(key, str) else reference_to(key)


KeyStrategy = Annotated[
    Any,
    BeforeValidator(as_key_strategy),
    PlainSerializer(_written_key, return_type=str),
]
"""A key template or a key function `(archive name) -> key`."""


def zone_name(name: Any) -> Any:
    """A name of the IANA time zone database, checked. Raises `ValueError`."""
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"there is no time zone {name!r}: give a name of the IANA database, such as UTC, "
            f"Europe/Berlin or Asia/Shanghai"
        ) from error
    return name


def object_key(
    key: Any, *, pipeline: str, partition: PartitionKey, archive: str, zone: tzinfo
) -> str:
    """The key for a slot's archive; a template's `{sealed_at}` is the time in this zone.

    Raises `StrategyError` if the key function raises, or the key cannot be used.
    """
    if isinstance(key, str):
        made: Any = _fill(key, pipeline=pipeline, partition=partition, archive=archive, zone=zone)
    else:
        made = call(key, archive, what="key generator")
    problem = _problem_of_key(made)
    if problem:
        raise StrategyError(
            f"the key for {archive} is unusable: {problem}",
            hint="correct the pipeline's `key`; the slot is kept and can be retried",
        )
    return str(made)


def key_prefix(key: Any, *, pipeline: str) -> str:
    """What all keys of a pipeline start with, as far as its template says."""
    prefix = ""
    for literal, field, spec, conversion in string.Formatter().parse(
        key if isinstance(key, str) else ""
    ):
        prefix += literal
        if field == "pipeline" and not spec and not conversion:
            prefix += pipeline
        elif field is not None:
            break
    return prefix


def _fill(
    template: str, *, pipeline: str, partition: PartitionKey, archive: str, zone: tzinfo
) -> str:
    return template.format(
        pipeline=pipeline,
        node=partition.node,
        slot=partition.slot,
        number=partition.number,
        sealed_at=partition.sealed_at.astimezone(zone),
        partition=str(partition),
        archive=archive,
    )


def _problem_of_key(key: Any) -> str:
    if not isinstance(key, str):
        return f"it is a {type(key).__name__}, not a string"
    try:
        size = len(key.encode("utf-8"))
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if not 0 < size < _MAX_KEY_BYTES:
        return f"it has {size} bytes, not 1 to {_MAX_KEY_BYTES - 1}"
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        return "it contains control characters"
    if any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key:
        return f"{key!r} contains a backslash, or an empty, '.' or '..' part"
    return ""


def call(function: Callable[..., Any], argument: Any, *, what: str) -> Any:
    """Call a user's sync or async function. Raises `StrategyError` naming it if it raises."""
    try:
        result = function(argument)
        if inspect.isawaitable(result):
            result = asyncio.run(_wait_for(result))
    except USER_ERRORS as error:
        raise StrategyError(f"the {what} {name_of(function)} raised {raised(error)}") from error
    return result


def call_packer(packer: Callable[[Path], Any], directory: Path) -> Path:
    """Run a custom packer. Raises `StrategyError` if it raises or returns no existing file."""
    made = call(packer, directory, what="packer")
    if not isinstance(made, (str, Path)) or not Path(made).is_file():
        raise StrategyError(
            f"the packer {name_of(packer)} returned {made!r}, which is not a file",
            hint="a packer must return the path of the archive it wrote; the slot is kept",
        )
    return Path(made)


def raised(error: BaseException) -> str:
    """A user function's exception as text that every log and file can hold."""
    text = f"{type(error).__name__}: {error}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def name_of(function: Callable[..., Any]) -> str:
    """The name by which a user finds the function."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return f"{function.__module__}:{function.__qualname__}"
