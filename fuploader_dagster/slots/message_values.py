"""The values of a message's fields that are in keys, and which messages share an archive.

What must always hold: the same messages in the same order give the same pieces. There are at most
`split_limit` of them, and one more for the rest, or one for each message (`seal_each`); nothing
that a message holds raises an error, and no message is in two pieces or in none.

Messages belong together if all that the key template makes of their values is equal: of
`{event:%Y%m%d}`, that is the day. The values of `settings/split.py` say what becomes of the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, NamedTuple

import msgspec

from fuploader_dagster.errors import UNREADABLE_JSON
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.settings.split import (
    INVALID,
    LONGEST_VALUE,
    NONE,
    OTHER,
    placeholders,
    stamp,
    text_in_key,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_YEARS = range(1900, 2200)
_FIRST_MILLISECONDS = 1e10
"""A larger number counts milliseconds: as seconds it would be after the year 2286."""
_LAST_MILLISECONDS = 1e13
_LONGEST_RAW = 6 * LONGEST_VALUE + 2
"""A text of this many bytes in JSON can have `LONGEST_VALUE` characters, all as `\\uXXXX`."""
_MOST_KNOWN = 10_000
_LONGEST_KNOWN = 64
"""Values that were read are remembered, but not long ones: three megabytes at most."""
_WHOLE_MINUTES = datetime(1973, 1, 1, tzinfo=timezone.utc).timestamp() / 60
"""Before, the clocks of some zones were off by seconds."""
_COARSE = re.compile(r"([^%]|%-?[YymdHMIjUWVGuwaAbB%])*", re.DOTALL)
"""Forms of a time in which all moments of a minute are the same."""
_ISO = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[T ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?\s?(Z|z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
_DIGITS = re.compile(r"-?\d{9,13}(\.\d{1,9})?", re.ASCII)
_Fields = dict[str, msgspec.Raw]
_decode_value = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(_Fields).decode


_Texts = tuple[tuple[str, ...], ...]
"""For each field what stands in the key, in each form that the template has."""


class Piece(NamedTuple):
    """Messages that share an archive."""

    split: dict[str, str]
    """By field: its text in keys, or the earliest of its times (`stamp`)."""
    positions: Sequence[int]
    """Of its messages in the slot, ascending."""


class _Group:
    def __init__(self, texts: _Texts, moments: list[datetime | None]) -> None:
        self.texts = texts
        self.earliest = moments
        self.positions: list[int] = []


class _Reader:
    """Reads one field of messages; `specs` are the forms that it has in the key."""

    def __init__(self, name: str, path: str, specs: Sequence[str], zone: tzinfo) -> None:
        self.name = name
        self.is_time = any(specs)
        self._specs = specs
        self._zone = zone
        self.first, *self._inner = path.split(".")
        self._known: dict[bytes, tuple[tuple[str, ...], datetime | None]] = {}
        self._coarse = all(_COARSE.fullmatch(spec) for spec in specs)
        self._of_minute: dict[float, tuple[str, ...]] = {}

    def read(self, raw: Any) -> tuple[tuple[str, ...], datetime | None]:
        """What stands in the key, in each form that the template has; and the time, if it is one.

        `raw` is the JSON of the outermost field, empty if there is none.
        """
        content = bytes(raw) if len(raw) <= _LONGEST_KNOWN else None
        if content is not None and content in self._known:
            return self._known[content]
        made = self._made(raw)
        if content is not None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[content] = made
        return made

    def _made(self, raw: Any) -> tuple[tuple[str, ...], datetime | None]:
        value = self._value(raw)
        if not self.is_time:
            return (text_in_key(value),), None
        if value is None or value == "":
            return (NONE,), None
        moment = time_of(value, self._zone)
        if moment is None:
            return (INVALID,), None
        return self._forms(moment), moment

    def _forms(self, moment: datetime) -> tuple[str, ...]:
        minute = moment.timestamp() // 60
        forms = self._of_minute.get(minute)
        if forms is None or not self._coarse or minute < _WHOLE_MINUTES:
            local = moment.astimezone(self._zone)
            forms = tuple([format(local, spec) for spec in self._specs])
            if len(self._of_minute) >= _MOST_KNOWN:
                self._of_minute.clear()
            self._of_minute[minute] = forms
        return forms

    def _value(self, raw: Any) -> Any:
        """The value as Python has it; a list for all that cannot be a value."""
        try:
            for name in self._inner:
                if _first_byte(raw) != b"{":
                    return None
                raw = _decode_fields(raw).get(name, b"")
            if len(raw) == 0:
                return None
            if len(raw) > _LONGEST_RAW or _first_byte(raw) in (b"{", b"["):
                return []
            return _decode_value(raw)
        except UNREADABLE_JSON:
            return []


def _first_byte(raw: Any) -> bytes:
    return memoryview(raw)[:1].tobytes()


class Tally:
    """Takes the messages of a slot, one by one, and tells which belong together."""

    def __init__(self, pipeline: Intake, *, each: bool = False) -> None:
        """`each`: no two messages belong together."""
        names = pipeline.split_by
        forms = placeholders(pipeline.key, names) if names else []
        self._readers = [
            _Reader(name, path, [one.spec for one in forms if one.name == name], pipeline.zone)
            for name, path in names.items()
        ]
        self._each = each
        self._limit = pipeline.split_limit
        self._groups: dict[object, _Group] = {}
        self._count = 0
        self._decode = _decoder_of(self._readers)

    def add(self, content: bytes | memoryview) -> None:
        """The next message, by its content."""
        read = [
            reader.read(raw)
            for reader, raw in zip(self._readers, self._decode(content), strict=True)
        ]
        texts = tuple([one for one, _ in read])
        moments = [moment for _, moment in read]
        together: object = self._count if self._each else texts
        group = self._groups.get(together)
        if group is None:
            group = self._groups[together] = _Group(texts, moments)
        for at, moment in enumerate(moments):
            first = group.earliest[at]
            if moment is not None and first is not None and moment < first:
                group.earliest[at] = moment
        group.positions.append(self._count)
        self._count += 1

    def pieces(self) -> list[Piece]:
        """In the order in which their first messages arrived; the rest is the last one."""
        found = list(self._groups.values())
        if self._each or len(found) <= self._limit:
            return [self._piece(one) for one in found]
        found.sort(key=lambda one: (-len(one.positions), one.positions[0]))
        kept = sorted(found[: self._limit], key=lambda one: one.positions[0])
        rest = sorted(at for one in found[self._limit :] for at in one.positions)
        return [*(self._piece(one) for one in kept), Piece(self._others(), rest)]

    def shared(self) -> dict[str, str]:
        """The values of all messages together: `OTHER` where they are not all the same."""
        found = list(self._groups.values())
        return self._piece(found[0]).split if len(found) == 1 else self._others()

    def _piece(self, group: _Group) -> Piece:
        split = {
            reader.name: forms[0] if moment is None else stamp(moment)
            for reader, forms, moment in zip(
                self._readers, group.texts, group.earliest, strict=True
            )
        }
        return Piece(split, group.positions)

    def _others(self) -> dict[str, str]:
        return {reader.name: OTHER for reader in self._readers}


def _decoder_of(readers: Sequence[_Reader]) -> Callable[[bytes | memoryview], Iterable[Any]]:
    """Finds the JSON of each reader's field in a message, without building the other fields."""
    outer = list(dict.fromkeys(reader.first for reader in readers))
    names = {f"field_{at}": name for at, name in enumerate(outer)}
    model = msgspec.defstruct(
        "Fields", [(at, msgspec.Raw, msgspec.Raw(b"")) for at in names], rename=names, gc=False
    )
    decode = msgspec.json.Decoder(model).decode
    at_reader = [f"field_{outer.index(reader.first)}" for reader in readers]
    none = [b""] * len(readers)

    def found(content: bytes | memoryview) -> Iterable[Any]:
        try:
            fields = decode(content)
        except UNREADABLE_JSON:
            return none
        return [getattr(fields, name) for name in at_reader]

    return found


def time_of(value: Any, zone: tzinfo) -> datetime | None:
    """The moment that a value is: seconds or milliseconds since 1970, or ISO 8601, which is in the
    zone if it says none. None if it is no time between the years 1900 and 2199."""
    try:
        if isinstance(value, str):
            if _DIGITS.fullmatch(value) is None:
                moment = _of_iso(value, zone)
            else:
                moment = _of_number(float(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            moment = _of_number(value)
        else:
            return None
        moment = moment and moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
    return moment if moment is not None and moment.year in _YEARS else None


def _of_number(number: float) -> datetime | None:
    if not -_LAST_MILLISECONDS < number < _LAST_MILLISECONDS:  # also NaN
        return None
    if abs(number) >= _FIRST_MILLISECONDS:
        return _EPOCH + timedelta(milliseconds=number)
    return _EPOCH + timedelta(seconds=number)


def _of_iso(text: str, zone: tzinfo) -> datetime | None:
    found = _ISO.fullmatch(text)
    if found is None:
        return None
    *numbers, fraction, offset = found.groups()
    year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
    microsecond = int((fraction or "0").ljust(6, "0")[:6])
    moment = datetime(year, month, day, hour, minute, second, microsecond, tzinfo=zone)
    if offset is None:
        return moment
    return moment.replace(tzinfo=_zone_of(offset))


def _zone_of(offset: str) -> timezone:
    if offset in ("Z", "z"):
        return timezone.utc
    digits = offset[1:].replace(":", "").ljust(4, "0")
    away = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-away if offset.startswith("-") else away)
