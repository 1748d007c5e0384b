"""Uses private names of Dagster: faster replacements for parts of it, which dagster.yaml names.

What must always hold: where Dagster's version is not the tested one, or a name is missing,
Dagster's own class does the work, and a warning says so. Nothing else needs the replacements.
"""

# Dagster is not imported here: `warm_imports`, which is below, decides how that is done.

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import version
from typing import Any, TypeVar

TESTED = "1.13"
"""The minor version whose private names are used; pyproject.toml asks for it too."""

log = logging.getLogger(__name__)
Class = TypeVar("Class", bound=type[Any])


def replacement_of(dagsters: Class, module: str, name: str) -> Class:
    """The class `name` of a module in this folder, or Dagster's own in its place."""
    installed = version("dagster")
    try:
        if installed.split(".")[:2] != TESTED.split("."):
            raise ImportError(f"it was tested with Dagster {TESTED} only")
        found: Class = getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        log.warning(
            "%s is not used with Dagster %s: %s. Dagster's own %s takes its place: it is slower, "
            "and loses nothing",
            name,
            installed,
            error,
            dagsters.__name__,
        )
        return dagsters
    return found
