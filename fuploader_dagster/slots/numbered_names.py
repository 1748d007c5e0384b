"""Names of files that share a name: `name.json`, `name~2.json`, `name~3.json`.

What must always hold: a numbered name is a legal file name, and belongs to the same family as the
name that it was made from, so everything that can have been stored for a message is found under one
key.
"""

from __future__ import annotations

import re

MAX_NAME_BYTES = 255
_FAMILY_BYTES = 100
"""Less than `numbered_name` leaves of any name that it has to cut."""
_LONGEST_ENDING = 20
_NUMBER = re.compile(r"~([0-9]{1,9})")


def numbered_name(name: str, number: int) -> str:
    """`name.json` -> `name~2.json`, shortened where it would be too long for a file name."""
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending) > _LONGEST_ENDING:
        stem, dot, ending = name, "", ""
    tail = f"~{number}{dot}{ending}"
    left_bytes = MAX_NAME_BYTES - len(tail.encode("utf-8"))
    return stem.encode("utf-8")[:left_bytes].decode("utf-8", "ignore") + tail


def is_numbered(stored: str, name: str) -> bool:
    """Whether `stored` is what `numbered_name` makes of `name` with some number; False of a name
    that UTF-8 cannot encode, which gets none."""
    try:
        return any(numbered_name(name, int(one[1])) == stored for one in _NUMBER.finditer(stored))
    except UnicodeEncodeError:
        return False


def is_numbered_member(stored: str, name: str) -> bool:
    """The same in an archive, where names may have folders, as results do: these stay."""
    folder, _, last = name.rpartition("/")
    stored_folder, _, stored_last = stored.rpartition("/")
    return folder == stored_folder and is_numbered(stored_last, last)


def family(name: bytes) -> bytes:
    """The same for a name and all its numbered names; few other names share it."""
    stem, dot, ending = name.rpartition(b".")
    return (stem if dot else ending).partition(b"~")[0][:_FAMILY_BYTES]
