"""Fields of messages in object keys: which (`split_by`), and what stands in a key for a value.

What must always hold: whatever a message says, what gets into a key is one harmless part of a name.
It has no slash, no control character, begins with neither a dot nor an underscore, and is at most
`LONGEST_VALUE` bytes long. Different values have different texts. Texts that begin with an
underscore are ours: `NONE`, `INVALID` and `OTHER`.

A seal, and later a receipt, keep for each field a text as it stands in keys, or, of a field that
the key has as a time, the earliest moment (`stamp`): so the key can be made again, in any form.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping
from datetime import datetime, timezone, tzinfo
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import AfterValidator, BeforeValidator, Field

from fuploader_dagster.settings.names import comma_separated

NONE = "_none"
"""There is no value: the field is missing, null or empty, or the file is no JSON object."""
INVALID = "_invalid"
"""The value cannot be used: a list, an object, too long, not valid text, no time."""
OTHER = "_other"
"""Messages of values beyond `split_limit`."""
LONGEST_VALUE = 128
"""Bytes, in a key. With a name before it, it is still a name for a folder."""
_LONGEST_PART = 255
NO_SPLIT: Mapping[str, str] = MappingProxyType({})
"""Of a slot that is not divided."""
KEY_FIELDS = {"pipeline", "node", "slot", "number", "sealed_at", "partition", "archive"}
"""What a key can have of the slot itself."""

_NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"
_HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_STAMP = "%Y%m%dT%H%M%S%fZ"


def _as_mapping(value: Any) -> Any:
    """`[tenant]` and `tenant, day` as `{tenant: tenant, ...}`."""
    value = comma_separated(value)
    if not isinstance(value, (list, tuple)):
        return value
    if not all(isinstance(name, str) for name in value):
        raise ValueError("it must be a list of names, or a mapping such as {tenant: meta.tenant}")
    for name in value:
        if "." in name:
            raise ValueError(
                f"give the field {name!r} a name for the key: "
                f"{{{name.rpartition('.')[2]}: {name}}} in place of the list"
            )
    if len(set(value)) != len(value):
        raise ValueError("a field is named twice")
    return {name: name for name in value}


def _without_those_of_slots(split_by: dict[str, str]) -> dict[str, str]:
    if taken := sorted(KEY_FIELDS & set(split_by)):
        raise ValueError(
            f"{taken[0]} means something else in a key: give the field another name, "
            f"{{my_{taken[0]}: {split_by[taken[0]]}}}"
        )
    return split_by


SplitBy = Annotated[
    dict[
        Annotated[str, Field(pattern=f"^{_NAME}$")],
        Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+){0,15}$", max_length=255)],
    ],
    Field(max_length=8),
    BeforeValidator(_as_mapping),
    AfterValidator(_without_those_of_slots),
]
"""By its name in the key, where the field is in a message: `meta.tenant`."""


class Placeholder(NamedTuple):
    """A field of messages in a key template."""

    name: str
    spec: str
    """How a time is written; empty for a text."""


class _Splits(Protocol):
    """The settings that have to go together."""

    @property
    def split_by(self) -> Mapping[str, str]: ...
    @property
    def key(self) -> Any: ...
    @property
    def message_format(self) -> str: ...
    @property
    def parser(self) -> Any: ...


def placeholders(template: str, names: Mapping[str, str]) -> list[Placeholder]:
    """The fields of messages in a key template, each form once. Raises `ValueError` for what
    cannot be filled in."""
    found: list[Placeholder] = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None or name not in names:
            continue
        if conversion or "{" in (spec or "") or (spec and "%" not in spec):
            raise ValueError(
                f"{{{name}}} in the key template may have the form of a time, such as "
                f"{{{name}:%Y/%m/%d}}, and no other"
            )
        found.append(Placeholder(name, spec or ""))
    forms = dict.fromkeys(found)
    for name in names:
        if len({bool(one.spec) for one in forms if one.name == name}) > 1:
            raise ValueError(f"{name} in the key template is a text in one place, a time elsewhere")
    return list(forms)


def check_split(settings: _Splits) -> None:
    """Raise `ValueError` if `split_by` does not go with the other settings."""
    if not settings.split_by:
        return
    if not isinstance(settings.key, str):
        raise ValueError("split_by needs a key template: a key function gets no fields of messages")
    used = {one.name for one in placeholders(settings.key, settings.split_by)}
    if unused := [name for name in settings.split_by if name not in used]:
        raise ValueError(
            f"split_by has {unused[0]}, but the key does not: slots would be divided for nothing; "
            f"write {{{unused[0]}}} into the key"
        )
    if settings.message_format == "raw" and settings.parser is None:
        raise ValueError(
            "split_by needs messages with fields, and message_format is raw: if they are JSON, set "
            "message_format: json (with name_fields: [] names are made from the body)"
        )


def too_long_a_part(key: str) -> str:
    """Why a store that is a folder could not have this key; empty if it could."""
    longest = max(len(part.encode("utf-8")) for part in key.split("/"))
    if longest <= _LONGEST_PART:
        return ""
    return f"with values of {LONGEST_VALUE} bytes a part of it has {longest}, not {_LONGEST_PART}"


class SplitValue:
    """A value as `str.format` fills it into a template: a text, or a time in a zone."""

    def __init__(self, text: str, zone: tzinfo) -> None:
        self._text = text
        self._zone = zone

    def __format__(self, spec: str) -> str:
        if not spec or self._text in (NONE, INVALID, OTHER):
            return self._text
        moment = moment_of(self._text)
        return INVALID if moment is None else format(moment.astimezone(self._zone), spec)


class SplitValues(dict[str, Any]):
    """What a template is filled with. A field that the slot has no value of is `NONE`: it was
    sealed before the field was in `split_by`."""

    def __init__(self, split: Mapping[str, str], zone: tzinfo, **others: Any) -> None:
        super().__init__({name: SplitValue(text, zone) for name, text in split.items()})
        self.update(others)
        self._zone = zone

    def __missing__(self, name: str) -> SplitValue:
        return SplitValue(NONE, self._zone)


def text_in_key(value: Any) -> str:
    """A value of JSON as it stands in a key."""
    if value is None or value == "":
        return NONE
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int):
        value = str(value)
    elif isinstance(value, float):
        value = repr(value) if math.isfinite(value) else None
    if not isinstance(value, str) or len(value) > LONGEST_VALUE:
        return INVALID
    if _HARMLESS.fullmatch(value) is not None:
        return value
    try:
        text = "".join(map(_escaped, value))
        text = _percent(text[0]) + text[1:] if text[0] in "._" else text
        return text if len(text.encode("utf-8")) <= LONGEST_VALUE else INVALID
    except UnicodeEncodeError:  # half a surrogate pair
        return INVALID


def _escaped(character: str) -> str:
    """As Hive writes it in paths, and DuckDB reads it: `%2F` for a slash. Letters of any script
    are kept."""
    return character if character.isalnum() or character in "-._" else _percent(character)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))


def stamp(moment: datetime) -> str:
    """A moment as seals and receipts keep it."""
    return moment.astimezone(timezone.utc).strftime(_STAMP)


def moment_of(text: str) -> datetime | None:
    """What `stamp` wrote; None for anything else."""
    try:
        return datetime.strptime(text, _STAMP).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
