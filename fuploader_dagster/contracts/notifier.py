"""Notifier: tells whoever asked for a task how far it is: a list of Redis, a webhook, a queue.

What must always hold:

- A notice is sent at least once, and only of what is durable. Each has an `id`, the same at every
  repetition, and different from that of every other notice.
- `send` sends in order. If it raises, the first of the notices may have been sent; all of them are
  sent again then.
- Whoever is told may be dead: `send` ends within seconds, and holds up nothing but other notices.
- No error contains a secret or a value of a task.

Implementations: `resources/notifiers/`. What is sent when: `delivery/notices.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Seconds, Settings
from fuploader_dagster.errors import BadNotice

Event = Literal["start", "item", "end"]

LONGEST_FIELD = 512
"""Bytes of a task's field in a key."""
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,63}(?:\.[A-Za-z_][A-Za-z0-9_]{0,63}){0,15})\}")


def _listed(value: Any) -> Any:
    return [one.strip() for one in value.split(",")] if isinstance(value, str) else value


@dataclass(frozen=True)
class Notice:
    """One thing that happened to a task."""

    id: str
    event: Event
    item: str
    """Name of the result; empty unless the event is `item`."""
    task: Mapping[str, Any]
    """The fields of the task that the settings ask for. One that is missing is not there."""
    content: Mapping[str, Any]
    """All of it, as JSON has it; the page on notices lists what is in it."""

    @property
    def word(self) -> str:
        """All that the plain format says: `start`, the name of a result, `end`."""
        return self.item if self.event == "item" else self.event


class Notifier(ABC):
    """Sends notices. Used by one thread at a time; several processes may send at once."""

    most_at_once: ClassVar[int] = 100
    """Maximum number of notices in one call of `send`."""

    @abstractmethod
    def send(self, notices: Sequence[Notice]) -> None:
        """Send the notices of one task, in their order. Safe to repeat.

        Raises `NotifierUnavailable` (no notice can be sent now), `NotifierRefused` (these cannot,
        until a person acts) or `BadNotice` (these never can).
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. May be repeated; `send` may be called again."""


class NotifierSettings(Settings):
    """Who is told of tasks. Subclasses add fields, and build the notifier."""

    on: Annotated[
        tuple[Event, ...], Field(min_length=1, max_length=3), BeforeValidator(_listed)
    ] = ("start", "item", "end")
    """Of what: `start` of a task, each `item` that came out of it, its `end`."""
    fields: Annotated[tuple[str, ...], Field(max_length=32), BeforeValidator(_listed)] = ()
    """Fields of the task's JSON to repeat in each notice: `task_id`, `meta.tenant`."""
    presigned_seconds: Annotated[int, Field(ge=0, le=604_800)] = 86_400
    """How long anybody can download the archive from the address in the notice of the end, where
    the object store has such addresses (S3, OSS, COS). 0: no address."""
    give_up_seconds: Seconds = 86_400.0
    """This long after a task's end its notices are given up, if they could not be sent."""

    def notifier(self) -> Notifier:
        """A notifier; connects when it is used."""
        raise NotImplementedError

    def describe(self) -> str:
        """Who is told, for people, without secrets. What was sent is remembered under it."""
        raise NotImplementedError

    def fields_used(self) -> Sequence[str]:
        """The fields of a task that its notices need, by their paths."""
        return self.fields

    def examine(self) -> Iterator[Diagnosis]:
        """Check for `fuploader doctor` whether notices could be sent, without sending one.

        Raises an error of this package if the check cannot go on.
        """
        yield Diagnosis("notifier", "good", self.describe())


def fields_in(template: str) -> Sequence[str]:
    """The fields of the task in a template such as `batch_download_resp_{task_id}`.

    Raises `ValueError` for anything else in braces: a template is no format string.
    """
    rest = _FIELD.sub("", template)
    if "{" in rest or "}" in rest:
        raise ValueError(
            "braces may only hold the name of a field, as {task_id}, or its path, as {meta.task_id}"
        )
    return list(dict.fromkeys(_FIELD.findall(template)))


def filled_in(template: str, task: Mapping[str, Any]) -> str:
    """The template with the values of the task's fields, as they are. Raises `BadNotice` for a
    field that is missing, or no name: nobody would look for it under another."""

    def value_of(found: re.Match[str]) -> str:
        value = task.get(found[1])
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise BadNotice(
                f"the task's field {found[1]} is missing, or is neither text nor number"
            )
        try:
            size = len(str(value).encode("utf-8"))
        except (UnicodeEncodeError, ValueError):
            raise BadNotice(f"the task's field {found[1]} is no valid text") from None
        if size > LONGEST_FIELD:
            raise BadNotice(
                f"the task's field {found[1]} has {size:,} bytes, more than {LONGEST_FIELD}"
            )
        return str(value)

    return _FIELD.sub(value_of, template)
