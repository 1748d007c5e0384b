"""Reads a configuration file: YAML, more strictly than YAML itself.

What must always hold: nothing that somebody wrote is silently ignored. A key that is there twice is
refused, where YAML would take the last one, and so is `${NAME}`, which no YAML fills in. No error
quotes a line or a value: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.places import CONFIG_VARIABLE

_UNREADABLE_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""PyYAML lets through what its conversions raise: on `2026-13-45`, `!!bool x`, `!!int ''`,
`!!timestamp x`, and on endless brackets."""
_OF_A_SHELL = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)[^}]*\}|^\$(?P<whole>[A-Z_][A-Z0-9_]*)$", re.A)


class _Twice(yaml.MarkedYAMLError):
    """A key that its mapping has already."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in keys:
                raise _Twice(problem="a key is there twice", problem_mark=key.start_mark)
            keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a file, mostly one. Raises `ConfigError`."""
    try:
        # S506: the loader is the safe one
        documents = list(yaml.load_all(path.read_text("utf-8"), _Loader)) or [None]
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration file {path}",
            hint=f"name one with {CONFIG_VARIABLE}, or create one with `fuploader init`",
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:  # its own text quotes the line
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        if isinstance(error, _Twice):
            raise ConfigError(
                f"{path}: the key{place} is already there, in the same mapping",
                hint="remove one of the two: YAML would silently take the last one",
            ) from None
        raise ConfigError(f"{path} is not valid YAML{place}: {error.problem}") from None
    except _UNREADABLE_YAML as error:
        raise ConfigError(f"{path} is not valid YAML: {type(error).__name__}") from None
    for raw in documents:
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} must be a mapping with `pipelines:`")
        check_names(raw, str(path))
    return cast(list[dict[str, Any]], documents)


def check_names(values: Mapping[Any, Any], where: str) -> None:
    """Raise `ConfigError` if a name is not text."""
    for name in values:
        if not isinstance(name, str):
            raise ConfigError(
                f"{where} has a setting whose name is a {type(name).__name__}, not a string",
                hint="YAML reads on, off, yes and no as booleans: quote such a name",
            )


def refuse_shell_variables(raw: Mapping[str, Any], where: str, *, templates: bool = False) -> None:
    """Raise `ConfigError`, which names all, if a text has `${NAME}`, or is `$NAME`. `templates`:
    whether Dagster fills in its own."""
    found = []
    for place, text in texts_in(raw):
        if not (match := _OF_A_SHELL.search(text)):
            continue
        name = match["name"] or match["whole"]
        hint = f"for a secret or an address write {{env: {name}}} instead of the text"
        if templates:
            hint += f"; for other settings {{{{ env.{name} }}}}"
        elif place[0] == "pipelines":
            variable = "__".join(str(part).upper() for part in place)
            hint += f"; any other setting is taken from the variable FUPLOADER_{variable}"
        said = f"{where}: {'.'.join(map(str, place))} has ${{{name}}}, which nothing fills in"
        found.append(ConfigError(said, hint=hint))
    if found:
        raise ConfigError.of(found)


def texts_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """All text in settings, with where it is."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from texts_in(one, (*place, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from texts_in(one, (*place, number))
