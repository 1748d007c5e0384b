"""What is found of a message: copies of its file, and dead letters."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

State = Literal["active", "sealed", "processed", "packed", "stored"]
STATES: tuple[State, ...] = ("active", "sealed", "processed", "packed", "stored")
"""In the order in which a message goes through them."""
SinkState = Literal["stored", "rejected", "owed", "waiting", "not asked"]


class AtSink(msgspec.Struct, frozen=True, kw_only=True):
    """What a sink has of a copy's slot."""

    state: SinkState
    """`stored`: it has the rows. `rejected`: of this file it has none, and there is a dead letter.
    `owed`: it is still to store them, `waiting`: so it is, with the next run that ships the slot.
    `not asked`: the slot was gone before the pipeline had this sink."""
    stored_at: str | None = None
    attempts: int = 0
    """That failed."""
    error: str = ""
    """Why the last one did."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why a slot is not further on its way."""

    stage: str
    attempts: int
    error: str


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a message, in one place. Times are UTC, ISO 8601."""

    name: str
    """As it is stored."""
    pipeline: str
    state: State
    node: str | None
    """Which made it; None of an archive whose name does not tell."""
    sealed_at: str | None = None
    partition: str | None = None
    """None while it is not sealed, and in an archive whose name does not tell."""
    slot: int | None = None
    directory: int | None = None
    """Number of the directory of that slot."""
    address: str | None = None
    """Of the archive that the object store has."""
    key: str | None = None
    member: str | None = None
    """Its name in that archive; None if the archive has only results, or it is unknown."""
    stored_at: str | None = None
    current: bool | None = None
    """Whether it is the archive that counts for its partition: of one that was processed again, it
    is the newest. None if this node cannot know."""
    size_bytes: int | None = None
    sha256: str | None = None
    results: int | None = None
    """How many came out of it, if its slot is on this disk and processed; -1: a dead letter."""
    redo: bool = False
    """Its stored slot is being processed again."""
    trouble: Trouble | None = None
    sinks: dict[str, AtSink] = {}


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter about a message, or about its file."""

    id: str
    pipeline: str
    node: str
    time: str
    stage: str
    """`drain`: it could not become a file. `process`; `sink:` and the sink's name."""
    reason: str
    waits: bool
    """Whether somebody has to do something about it."""
    sent_back: bool
    settled: str = ""
    """Why nothing has to be done: its item was stored since."""
    name: str | None = None
    message_id: str | None = None
    partition: str | None = None


def as_builtins(found: Copy | Letter) -> dict[str, Any]:
    """For programs. A letter has the state `dead letter`."""
    fields: dict[str, Any] = msgspec.to_builtins(found)
    return fields if isinstance(found, Copy) else {"state": "dead letter", **fields}
