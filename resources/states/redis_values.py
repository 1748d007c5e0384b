"""Values of a pipeline's keys in Redis, read without trusting them.

What must always hold: no value raises. A value that none of our scripts would have written is
ignored, with a sentence that names its key, its field and itself. Digits are counted before they
become a number: thousands of them are an error in Python and infinity in Lua.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from fuploader_dagster.contracts.state import (
    HIGHEST_NOTE_TIME,
    HIGHEST_NUMBER,
    TOTALS,
    Note,
    SlotCount,
)
from fuploader_dagster.resources.states.redis_errors import shown

_SLOT = re.compile(r"[0-9]{1,9}")
_COUNT = re.compile(r"([0-9]{1,18}) ([0-9]{1,18}) ([0-9]{1,18})")
_CLAIM = re.compile(r"([0-9]{1,18}) (.+)", re.DOTALL)
_TOTAL = re.compile(r"-?[0-9]{1,18}")
_HIGHEST = re.compile(r"[0-9]{1,9}")
_NOTE = re.compile(r"([0-9]{1,16}) (.*)", re.DOTALL)


def read_counts(key: str, flat: Sequence[str], nonsense: list[str]) -> list[SlotCount]:
    counts = []
    for slot, text in pairs(flat):
        match = _COUNT.fullmatch(text)
        if match and _SLOT.fullmatch(slot):
            counts.append(SlotCount(int(slot), *(int(value) for value in match.groups())))
        else:
            _ignore(nonsense, key, slot, text, "a slot with three numbers")
    return sorted(counts, key=lambda count: count.slot)


def read_owners(key: str, flat: Sequence[str], now_ms: int, nonsense: list[str]) -> dict[int, str]:
    """Slots and storage roots of the claims that have not lapsed."""
    owners = {}
    for slot, text in pairs(flat):
        match = _CLAIM.fullmatch(text)
        if not match or not _SLOT.fullmatch(slot):
            _ignore(nonsense, key, slot, text, "a slot with a time and a storage root")
        elif int(match[1]) > now_ms:
            owners[int(slot)] = match[2]
    return owners


def read_notes(key: str, found: Mapping[str, str], nonsense: list[str]) -> dict[str, Note]:
    notes = {}
    for name, text in found.items():
        match = _NOTE.fullmatch(text)
        if match and 0 < int(match[1]) <= HIGHEST_NOTE_TIME:
            notes[name] = Note(int(match[1]), match[2])
        else:
            _ignore(nonsense, key, name, text, "a time and a text")
    return notes


def read_totals(key: str, flat: Sequence[str], nonsense: list[str]) -> dict[str, int]:
    totals = {}
    for name, text in pairs(flat):
        if name in TOTALS and _TOTAL.fullmatch(text):
            totals[name] = int(text)
        else:
            _ignore(nonsense, key, name, text, f"a number in one of {', '.join(TOTALS)}")
    return totals


def read_highest(key: str, slot: str, text: str | None, nonsense: list[str]) -> int:
    if text is None:
        return 0
    if _HIGHEST.fullmatch(text):
        return int(text)
    _ignore(nonsense, key, slot, text, f"a directory number of at most {HIGHEST_NUMBER:,}")
    return 0


def pairs(flat: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A script returns a hash as name, value, name, value."""
    return zip(flat[::2], flat[1::2], strict=True)


def _ignore(nonsense: list[str], key: str, name: str, value: str, wanted: str) -> None:
    nonsense.append(
        f"Redis holds {shown(value)!r} in field {shown(name)!r} of {key}, which should be "
        f"{wanted}; it is ignored"
    )
