"""User functions, called strategies in docs and settings: parser, file name generator, packer and
key generator.

They are plain functions, given as objects in Python or as `package.module:function` in YAML.
Workers are separate processes that import them by name: no lambdas, no nested functions.

A parser or name generator that raises, or returns something unusable, makes its message a
`BadMessage`; a packer or key generator that does so gives its slot a `StrategyError`. Nothing else
stops.
"""

from __future__ import annotations

import inspect
import string
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo

from fuploader_dagster.contracts.functions import (
    USER_ERRORS,
    as_function,
    name_of,
    raised,
    reference_to,
)
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import StrategyError
from fuploader_dagster.settings.split import (
    KEY_FIELDS,
    LONGEST_VALUE,
    NO_SPLIT,
    SplitValues,
    placeholders,
    stamp,
    too_long_a_part,
)

_MAX_KEY_BYTES = 1024
"""S3 and COS allow 1,024 bytes of UTF-8, OSS 1,023."""
_SAMPLE = PartitionKey(datetime(2026, 1, 1, tzinfo=timezone.utc), "node", 0, 1)
_TIME = stamp(_SAMPLE.sealed_at)


def as_key_strategy(key: Any, split_by: Mapping[str, str] = NO_SPLIT) -> Any:
    """A key setting as a checked template or a function. Raises `ValueError`.

    `split_by`: the fields of messages that a template may have besides.
    """
    if not isinstance(key, str) or (":" in key and "{" not in key):
        return as_function(key)
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(key) if field is not None}
    except ValueError as error:
        raise ValueError(f"key template is malformed: {error}") from error
    known = {*KEY_FIELDS, *split_by}
    if unknown := fields - known:
        raise ValueError(
            f"key template has unknown fields {sorted(unknown)}; known are {sorted(known)}. Fields "
            f"of messages have to be in split_by"
        )
    of_messages = placeholders(key, split_by)
    if not fields & {"archive", "partition"}:
        raise ValueError(
            "key template must contain {archive} or {partition}, "
            "otherwise several archives would get the same key"
        )
    try:  # a template that fails here would fail at every seal
        archive = f"{_SAMPLE}.tar.zst"
        sample = {one.name: _TIME if one.spec else "9" * LONGEST_VALUE for one in of_messages}
        made = _fill(key, "p", _SAMPLE, archive, timezone.utc, sample)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"key template cannot be filled in: {error}") from error
    if problem := _problem_of_key(made) or (too_long_a_part(made) if of_messages else ""):
        raise ValueError(f"key template makes unusable keys: {problem}")
    return key


def _written_key(key: Any) -> str:
    return key if isinstance(key, str) else reference_to(key)


def _with_split(key: Any, info: ValidationInfo) -> Any:
    return as_key_strategy(key, info.data.get("split_by", NO_SPLIT))


KeyStrategy = Annotated[
    Any,
    BeforeValidator(_with_split),
    PlainSerializer(_written_key, return_type=str),
]
"""A key template or a key function `(archive name) -> key`; `split_by` precedes it in its model."""


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
    key: Any,
    *,
    pipeline: str,
    partition: PartitionKey,
    archive: str,
    zone: tzinfo,
    split: Mapping[str, str] = NO_SPLIT,
) -> str:
    """The key for a slot's archive; times in a template are in this zone. `split` has the values
    of fields of messages that all messages of the slot share (`settings/split.py`).

    Raises `StrategyError` if the key function raises, or the key cannot be used.
    """
    if isinstance(key, str):
        made: Any = _fill(key, pipeline, partition, archive, zone, split)
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


def known_prefix(key: str, *, pipeline: str, partition: PartitionKey, zone: tzinfo) -> str:
    """What the keys of this partition's archives start with, whatever its messages say."""
    known = ""
    for literal, field, spec, conversion in string.Formatter().parse(key):
        known += literal.replace("{", "{{").replace("}", "}}")
        if field is not None and field not in KEY_FIELDS - {"archive"}:
            break
        if field is not None:
            known += (
                f"{{{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
            )
    return _fill(known, pipeline, partition, "", zone, NO_SPLIT)


def _fill(  # noqa: PLR0917  as `object_key` has them
    template: str,
    pipeline: str,
    partition: PartitionKey,
    archive: str,
    zone: tzinfo,
    split: Mapping[str, str],
) -> str:
    return template.format_map(
        SplitValues(
            split,
            zone,
            pipeline=pipeline,
            node=partition.node,
            slot=partition.slot,
            number=partition.number,
            sealed_at=partition.sealed_at.astimezone(zone),
            partition=str(partition),
            archive=archive,
        )
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
            import asyncio  # noqa: PLC0415  loading settings must not import it

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


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
