"""Pipelines of a Python module with Dagster definitions, for commands: `fuploader -m shop.defs`.

What must always hold: Dagster is loaded by the module, not from here, and nothing of it is resolved
but a function that is decorated with `@dg.definitions`, which is called. Whatever is wrong with the
module raises a `ConfigError` in a sentence.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fuploader_dagster.contracts.functions import USER_ERRORS, raised
from fuploader_dagster.errors import ConfigError, FuploaderError
from fuploader_dagster.settings.built import built_of
from fuploader_dagster.settings.pipeline import Pipeline

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?", re.ASCII)
_LAZY = "dagster.components.definitions"


def pipelines_of_module(reference: str) -> dict[str, Pipeline]:
    """By name, the pipelines in the definitions of `package.module`, or of `package.module:name`.

    Raises `ConfigError`.
    """
    if not _FORM.fullmatch(reference):
        raise ConfigError(
            "the module is not of the form package.module or package.module:name",
            hint="name it as `dagster dev -m` does",
        )
    name, _, attribute = reference.partition(":")
    definitions = _definitions(_imported(name), attribute)
    pipelines = built_of(set(_names_in(definitions)))
    if not pipelines:
        raise ConfigError(
            f"the definitions of {reference} have no pipeline in them",
            hint="build_definitions(Pipeline(...)) makes some that have; merge them with yours",
        )
    found = {pipeline.name: pipeline for pipeline in pipelines}
    if len(found) < len(pipelines):
        names = ", ".join(f"{one.name} on node {one.node}" for one in pipelines)
        raise ConfigError(
            f"the definitions of {reference} have several pipelines of one name: {names}",
            hint="a command works on one node: name a module with the pipelines of just this one",
        )
    return found


def _imported(name: str) -> ModuleType:
    """The module, found from the working folder as `python -m` finds it."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _not_importable(name, error) from error
        raise ConfigError(
            f"there is no module {error.name}",
            hint=f"it is looked for in {here}, in PYTHONPATH and among what is installed; run this "
            "in the folder where `dagster dev -m` finds it",
        ) from None
    except FuploaderError:
        raise
    except USER_ERRORS as error:
        raise _not_importable(name, error) from error


def _not_importable(name: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"cannot import the module {name}: {raised(error)}",
        hint=f"`python -m {name}` shows where",
    )


def _definitions(module: ModuleType, attribute: str) -> Any:
    """The `Definitions` of the module; those that a function makes are made now."""
    if attribute and not hasattr(module, attribute):
        raise ConfigError(f"the module {module.__name__} has no {attribute}")
    known = {attribute: getattr(module, attribute)} if attribute else vars(module)
    kinds = _kinds()
    found = {id(value): name for name, value in known.items() if kinds and isinstance(value, kinds)}
    if not found:
        raise ConfigError(
            f"{module.__name__}{f':{attribute}' if attribute else ''} has no Dagster definitions",
            hint="name the module that `dagster dev -m` loads",
        )
    if len(found) > 1:
        names = " or ".join(f"{module.__name__}:{name}" for name in sorted(found.values()))
        raise ConfigError(
            f"the module {module.__name__} has several definitions", hint=f"choose {names}"
        )
    (name,) = found.values()
    definitions = known[name]
    if isinstance(definitions, kinds[0]):
        return definitions
    try:
        return definitions()
    except FuploaderError:
        raise
    except USER_ERRORS as error:
        raise ConfigError(f"{module.__name__}:{name} failed: {raised(error)}") from error


def _kinds() -> tuple[type, ...]:
    """Dagster's `Definitions`, and functions that make them, if the module has loaded Dagster."""
    if "dagster" not in sys.modules:
        return ()
    lazy = getattr(sys.modules.get(_LAZY), "LazyDefinitions", None)
    return (sys.modules["dagster"].Definitions, *([lazy] if lazy else []))


def _names_in(definitions: Any) -> Iterator[str]:
    """Names of jobs, sensors, schedules, resources and assets, as they were given."""
    for kind in ("jobs", "sensors", "schedules"):
        yield from (one.name for one in _all(definitions, kind) if hasattr(one, "name"))
    yield from definitions.resources or {}
    for one in _all(definitions, "assets"):
        for key in [one.key] if hasattr(one, "key") else getattr(one, "keys", ()):
            yield key.to_user_string()


def _all(definitions: Any, kind: str) -> Iterable[Any]:
    return getattr(definitions, kind) or ()
