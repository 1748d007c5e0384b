"""What FUploader kept in Redis: its keys in both styles, read and given back.

What must always hold: nothing but keys of these exact forms is ever removed, and only under a
prefix that names at least one directory which lies, or lay, below the storage root that is taken
over: other nodes and other tasks use the same server.

Style `legacy_meta`, prefix `{task}:meta:{node}:` (a node without the ending of its workers):

    slot:{n}:active_dir    slot:{n}:active_count    slot:{n}:dir_seq     strings
    sealed_ready                                                         list of ready entries
    init_lock   finalize_lock   pack_lock:{ready entry}                  strings

Style `default`, prefix `file_uploader:` or another:

    slot:{n}               hash of active_dir_id, active_count, dir_seq
    queue:ready            list of ready entries
    runtime:initialized   lock:init   lock:finalize   pack_lock:{ready entry}

A ready entry is `0:slot_0_1` or `slot-0:dir-000001`: a slot and the name of a sealed directory.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Value = str | Sequence[str] | Mapping[str, str]

_WORKER_SUFFIX = re.compile(r"-(meta|packer)-p.*")
_ACTIVE_DIR = re.compile(r"slot:([0-9]{1,9}):active_dir")
_SLOT = re.compile(r"slot:([0-9]{1,9})")
_KNOWN = (
    re.compile(r"slot:[0-9]{1,9}:(active_dir|active_count|dir_seq)"),
    re.compile(r"slot:[0-9]{1,9}"),
    re.compile(r"sealed_ready|queue:ready"),
    re.compile(r"init_lock|finalize_lock|lock:init|lock:finalize|runtime:initialized"),
    re.compile(r"pack_lock:.+"),
)
_READY_ENTRY = re.compile(r"(?:slot-)?([0-9]{1,9}):(.+)", re.DOTALL)


@dataclass(frozen=True)
class FormerKeys:
    """FUploader's keys under one prefix."""

    prefix: str
    keys: tuple[str, ...]
    """All of the known forms, by their full names."""
    active: Mapping[int, str]
    """Slot to the directory that it wrote into."""
    ready: tuple[tuple[int, str], ...]
    """Slot and directory of what waited to be packed."""

    def directories(self) -> Iterator[tuple[int, str]]:
        """All directories that are named here, each with its slot."""
        yield from self.active.items()
        yield from self.ready


class FormerState(Protocol):
    """Access to FUploader's Redis. All raise `StateUnavailable` where it does not answer, and
    `StateRefused` where it refuses us."""

    def dump(self, prefix: str) -> Mapping[str, Value]:
        """All keys that begin with the prefix, with their values. Changes nothing."""
        ...

    def user_of(self, prefixes: Sequence[str], seconds: float) -> str:
        """Who works with such keys at the moment, in words; empty if nobody does.

        Looks on for so many seconds, unless nobody else is connected. Changes nothing.
        """
        ...

    def remove(self, keys: Sequence[str]) -> None:
        """Remove the keys, all at once. Missing ones are no error."""
        ...

    def close(self) -> None:
        """Disconnect. May be repeated."""
        ...


def prefixes(task_name: str, nodes: Collection[str], key_prefix: str) -> list[str]:
    """What FUploader's keys on this machine can begin with."""
    scopes = dict.fromkeys(_WORKER_SUFFIX.sub("", node) for node in nodes if node)
    found = [f"{task_name}:meta:{scope}:" for scope in scopes] if task_name else []
    return [*found, key_prefix] if key_prefix else found


def default_node() -> str:
    """The node's name that FUploader makes of this machine's address, where none is set."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("8.8.8.8", 80))  # sends nothing
            return f"node_id-{probe.getsockname()[0]}"
    except OSError:
        pass
    try:
        return f"node_id-{socket.gethostbyname(socket.gethostname())}"
    except OSError:
        return "node_id-127.0.0.1"


def read_keys(prefix: str, dump: Mapping[str, Value]) -> FormerKeys:
    """What the keys under a prefix say. Values of other forms than FUploader's are passed over."""
    active: dict[int, str] = {}
    ready: list[tuple[int, str]] = []
    known = []
    for key, value in sorted(dump.items()):
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or not any(form.fullmatch(name) for form in _KNOWN):
            continue
        known.append(key)
        if (match := _ACTIVE_DIR.fullmatch(name)) and isinstance(value, str):
            active[int(match[1])] = value
        elif (match := _SLOT.fullmatch(name)) and isinstance(value, Mapping):
            active[int(match[1])] = value.get("active_dir_id", "")
        elif name in ("sealed_ready", "queue:ready") and not isinstance(value, (str, Mapping)):
            entries = map(_READY_ENTRY.fullmatch, value)
            ready += [(int(entry[1]), entry[2]) for entry in entries if entry]
    return FormerKeys(prefix, tuple(known), active, tuple(ready))
