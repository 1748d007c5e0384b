"""Sink: where the rows that are made of a slot's items go: a table, a stream.

What must always hold:

- One delivery (a partition, for one sink) is stored once, whatever dies. Its rows and the note that
  it was stored become durable together. A delivery that is noted is answered with what was noted,
  and nothing is stored again.
- An item whose rows the service cannot take is rejected whole, and all others are stored. `reject`
  is called with all of them before anything becomes durable, so that none is lost.
- Nothing becomes durable before `items` has ended: until then it may raise, which undoes everything
  (a slot is removed while it is read, for example). What `items` and `reject` raise passes through.
- No value of a row is part of an error or of a reason; it may be somebody's password.
- Memory does not grow with the number of items.

Implementations: `resources/sinks/`. What is around it: `delivery/rows.py`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.functions import Strategy
from fuploader_dagster.contracts.settings import Settings

Row = Mapping[str, Any]
"""Column names and values."""


@dataclass(frozen=True)
class Delivery:
    """What identifies a slot's rows, for one sink."""

    pipeline: str
    sink: str
    partition: str
    """Of dead letters that are stored again: `letter:` and the letter's id."""
    redo: int = 0
    """Raised by one each time a person asks to store the partition's rows again."""

    @property
    def id(self) -> str:
        """The same for each attempt, and for no other delivery of this sink."""
        return f"{self.partition}#{self.redo}" if self.redo else self.partition


@dataclass(frozen=True)
class ItemRows:
    """The rows of one item; none is fine."""

    position: int
    """Of the item in the slot, from 0."""
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class RejectedItem:
    """An item whose rows the service cannot take."""

    position: int
    reason: str
    """In the service's words, without values."""


Reject = Callable[[Sequence[RejectedItem]], None]


@dataclass(frozen=True)
class StoredRows:
    """What the service confirmed."""

    rows: int
    address: str
    """For people, without secrets: `postgresql://db.example/shop/orders`."""
    already_there: bool = False
    """An earlier attempt stored it, so nothing was stored this time."""


class Sink(ABC):
    """One target. Used by one thread at a time; several processes may store at once."""

    @abstractmethod
    def store(self, delivery: Delivery, items: Iterable[ItemRows], reject: Reject) -> StoredRows:
        """Store the rows of all items that the service can take, in their order. Safe to repeat.

        `items` is read once, and only if the delivery is not stored yet. With a `redo`, what an
        earlier delivery of the partition stored is replaced; raises `SinkRefused` if the sink
        cannot tell what that was. Raises `SinkUnavailable` (try again) or `SinkRefused` (a person
        must act: no such table, no right); nothing is stored then, or all is and the next attempt
        finds it.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. May be repeated."""


class SinkSettings(Settings):
    """The settings of a sink. Subclasses add fields, and build the sink."""

    columns: Annotated[Mapping[str, str] | Sequence[str] | None, Field(min_length=1)] = None
    """Which fields of an item's JSON become columns: a list of names, or column and field
    (`{id: doc_id, city: address.city}`). By default, all fields. Not together with `rows`."""
    rows: Strategy | None = None
    """Your own `package.module:function`, from an item to its row, a list of rows, or None."""
    required: bool = False
    """If true, local data of a slot is kept until its rows are stored. Otherwise a slot goes when
    its archive is stored, and rows that are not stored by then are made of the archive."""
    partitions_per_run: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Maximum number of slots in one run of this sink."""
    pool: str | None = None
    """A Dagster pool that limits how many runs store rows at once."""

    @model_validator(mode="after")
    def _check_rows(self) -> SinkSettings:
        if self.rows is not None and self.columns is not None:
            raise ValueError("columns cannot be given together with rows: that chooses them itself")
        if inspect.iscoroutinefunction(self.rows):
            raise ValueError("rows must be a plain function, not an async one")
        names = () if self.columns is None else tuple(self.columns)
        if len(set(names)) != len(names):
            raise ValueError("columns names a column twice")
        return self

    def sink(self) -> Sink:
        """A sink; connects when it is used."""
        raise NotImplementedError

    def describe(self) -> str:
        """The target, for people, without secrets."""
        raise NotImplementedError

    def replaced_by_redo(self) -> str:
        """Where a redo deletes all rows of the partition, whichever sink of the pipeline stored
        them: for people, and the same for two sinks that do so in one place. Empty: nowhere."""
        return ""

    def examine(self) -> Iterator[Diagnosis]:
        """Check the sink for `fuploader doctor`: reachable, table and columns there, rights.

        Raises an error of this package if the check cannot go on.
        """
        yield Diagnosis("sink", "good", self.describe())
