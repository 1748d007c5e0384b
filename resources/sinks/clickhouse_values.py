"""From the values of JSON, and of users' own rows, to what columns of ClickHouse hold.

What must always hold: a value is stored as it is, or its item is rejected. Nothing is rounded, cut
or replaced, but for a number in a column of floats and the fraction of a second in a column of
times, which are stored with the precision of the column. A reason says what is wrong, never the
value.

- NULL goes into a Nullable column only.
- A text column takes any simple value as text, and a dict or a list as JSON text.
- A time without an offset from UTC is UTC, whatever the time zone of the column. A number is
  seconds since 1970.

clickhouse-connect's own writers convert much more than that (`"x"` is true, an unknown member of an
enumeration is 0), so they only get what comes out of here.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Context, Decimal, InvalidOperation
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

from fuploader_dagster.resources.sinks.clickhouse_times import day, seconds, ticks
from fuploader_dagster.resources.sql.values import Unfit, json_text, text

Convert = Callable[[Any], Any]
Fits = Callable[[Sequence[Any]], bool]

_NONE = type(None)
_WHOLE = re.compile(r"[+-]?[0-9]{1,80}")
_LARGEST_FLOAT32 = 3.4028234663852886e38
_LARGE = 10**80
"""More than any column of whole numbers holds."""
_EXACT = Context(prec=400)


class Kind:
    """The values of one column."""

    def __init__(
        self, convert: Convert, plain: frozenset[type] = frozenset(), fits: Fits | None = None
    ) -> None:
        """`plain`: types of which a whole column is taken as it is, if it `fits`."""
        self._convert, self._plain, self._fits = convert, plain, fits
        self.nullable = False

    def value(self, value: Any) -> Any:
        """As the driver takes it. Raises `Unfit`."""
        if value is None:
            if self.nullable:
                return None
            raise Unfit("NULL, and the column is not Nullable")
        return self._convert(value.value if isinstance(value, enum.Enum) else value)

    def column(self, values: Sequence[Any]) -> tuple[Sequence[Any], Mapping[int, str]]:
        """A column of them, and why some cannot be stored, by their place."""
        types = set(map(type, values))
        given = values
        if _NONE in types and self.nullable:
            types.discard(_NONE)
            given = [one for one in values if one is not None]
        if types <= self._plain and (self._fits is None or not given or self._fits(given)):
            return values, {}
        made: list[Any] = []
        unfit: dict[int, str] = {}
        for place, value in enumerate(values):
            try:
                made.append(self.value(value))
            except Unfit as error:
                made.append(None)
                unfit[place] = str(error)
        return made, unfit


def kind_of(column_type: Any) -> Kind | None:
    """What a column of that type (of clickhouse-connect) takes; None if we cannot fill it."""
    kind = _bare_kind(column_type)
    if kind is not None:
        kind.nullable = bool(column_type.nullable)
    return kind


def _bare_kind(column_type: Any) -> Kind | None:  # noqa: PLR0911 - a table of types
    name = str(column_type.base_type)
    if name in _BY_NAME:
        return _BY_NAME[name]()
    if match := re.fullmatch(r"(U?)Int(\d+)", name):
        return _integers(int(match[2]), signed=not match[1])
    if name.startswith("Enum"):
        return Kind(
            _member(dict(zip(column_type.type_def.keys, column_type.type_def.values, strict=True)))
        )
    if name.startswith("Decimal"):
        return Kind(_decimal(column_type.prec, column_type.scale))
    if name == "DateTime64":
        return Kind(ticks(column_type.scale))
    if name == "FixedString":
        return Kind(_fixed(column_type.byte_size))
    if name == "JSON":
        return None if column_type.typed_paths else Kind(_object)
    if name == "Array":
        return _composed([column_type.element_type], _array)
    if name == "Map":
        return _composed([column_type.key_type, column_type.value_type], _map)
    if name == "Tuple":
        names = tuple(column_type.element_names)
        return _composed(column_type.element_types, lambda *kinds: _tuple(names, kinds))
    return None


def _composed(types: Sequence[Any], make: Callable[..., Convert]) -> Kind | None:
    kinds = [kind_of(one) for one in types]
    return None if None in kinds else Kind(make(*kinds))


def _integers(bits: int, *, signed: bool) -> Kind:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def convert(value: Any) -> int:
        if isinstance(value, int):
            number = int(value)
        elif isinstance(value, float | Decimal) and -_LARGE < value < _LARGE:
            number = int(value)
            if number != value:
                raise Unfit("not a whole number")
        elif isinstance(value, str) and _WHOLE.fullmatch(value):
            number = int(value)
        else:
            raise Unfit("not a whole number")
        if not low <= number <= high:
            raise Unfit("a number out of range")
        return number

    return Kind(convert, frozenset({int}), lambda all_: low <= min(all_) and max(all_) <= high)


def _float(value: Any) -> float:
    if isinstance(value, str) and "_" in value:
        raise Unfit("not a number")
    if isinstance(value, int | float | Decimal | str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise Unfit("not a number")


def _float32(value: Any) -> float:
    number = _float(value)
    if not _small([number]):
        raise Unfit("a number out of range")
    return number


def _small(values: Sequence[float]) -> bool:
    limit, endless = _LARGEST_FLOAT32, float("inf")
    return not any(limit < abs(one) < endless for one in values)


def _bool(value: Any) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise Unfit("neither true nor false")


def _string(value: Any) -> str | bytes:
    if isinstance(value, str):
        return text(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal | UUID):
        return str(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return json_text(value)


def _encodes(values: Sequence[str]) -> bool:
    joined = "".join(values)
    if joined.isascii():
        return True
    try:
        joined.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fixed(size: int) -> Convert:
    def convert(value: Any) -> bytes:
        found = _string(value)
        data = found.encode() if isinstance(found, str) else found
        if len(data) > size:
            raise Unfit(f"more than {size} bytes")
        return data.ljust(size, b"\0")

    return convert


def _decimal(digits: int, scale: int) -> Convert:
    limit = 10**digits

    def convert(value: Any) -> Decimal:
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
                raise Unfit("not a number")
            number = value if isinstance(value, Decimal) else Decimal(str(value))
            scaled = number.scaleb(scale, _EXACT)
            if not number.is_finite():
                raise Unfit("not a finite number")
            whole = scaled.to_integral_value(context=_EXACT)
        except (InvalidOperation, ValueError):
            raise Unfit("not a number") from None
        if whole != scaled:
            raise Unfit(f"more than {scale} digits after the point")
        if abs(whole) >= limit:
            raise Unfit("a number out of range")
        return number

    return convert


def _uuid(value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise Unfit("not a UUID") from None


def _member(numbers: Mapping[str, int]) -> Convert:
    known = frozenset(numbers.values())

    def convert(value: Any) -> int:
        if isinstance(value, str) and value in numbers:
            return int(numbers[value])
        if isinstance(value, int) and not isinstance(value, bool) and value in known:
            return int(value)
        raise Unfit("not a member of the enumeration")

    return convert


def _ipv4(value: Any) -> IPv4Address:
    try:
        return IPv4Address(value)
    except (AddressValueError, ValueError, TypeError):
        raise Unfit("not an IPv4 address") from None


def _ipv6(value: Any) -> IPv6Address:
    try:
        if isinstance(value, IPv4Address) or (isinstance(value, str) and ":" not in value):
            return IPv6Address(f"::ffff:{IPv4Address(value)}")
        found = IPv6Address(value)
        if getattr(found, "scope_id", None):
            raise Unfit("an IP address with a zone")
        return found
    except (AddressValueError, ValueError, TypeError):
        raise Unfit("not an IP address") from None


def _object(value: Any) -> str:
    if not isinstance(value, Mapping):
        raise Unfit("not an object")
    found = json_text(value)
    paths = list(_paths(value, ""))
    if len(set(paths)) != len(paths):  # {"a": {"b": 1}, "a.b": 2}
        raise Unfit("an object with two values for one path")
    return found


def _paths(value: Mapping[str, Any], above: str) -> Iterator[str]:
    for name, one in value.items():
        if isinstance(one, Mapping):
            yield from _paths(one, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _array(element: Kind) -> Convert:
    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise Unfit("not a list")
        return [element.value(one) for one in value]

    return convert


def _map(key: Kind, content: Kind) -> Convert:
    def convert(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise Unfit("not an object")
        return {key.value(name): content.value(one) for name, one in value.items()}

    return convert


def _tuple(names: Sequence[str], kinds: Sequence[Kind]) -> Convert:
    def convert(value: Any) -> tuple[Any, ...]:
        if names and isinstance(value, Mapping):
            if set(value) != set(names):
                raise Unfit("an object with other names than the tuple")
            value = [value[name] for name in names]
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise Unfit(f"not a list of {len(kinds)}")
        return tuple(kind.value(one) for kind, one in zip(kinds, value, strict=True))

    return convert


_BY_NAME: Mapping[str, Callable[[], Kind]] = {
    "String": lambda: Kind(_string, frozenset({str}), _encodes),
    "Bool": lambda: Kind(_bool, frozenset({bool})),
    "Float64": lambda: Kind(_float, frozenset({float})),
    "Float32": lambda: Kind(_float32, frozenset({float}), _small),
    "BFloat16": lambda: Kind(_float32, frozenset({float}), _small),
    "Date": lambda: Kind(day(date(1970, 1, 1), date(2149, 6, 6))),
    "Date32": lambda: Kind(day(date(1900, 1, 1), date(2299, 12, 31))),
    "DateTime": lambda: Kind(seconds),
    "UUID": lambda: Kind(_uuid, frozenset({UUID})),
    "IPv4": lambda: Kind(_ipv4),
    "IPv6": lambda: Kind(_ipv6),
}
