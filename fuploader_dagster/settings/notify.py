"""Who is told of a pipeline's tasks: one notifier or several, and what they need of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, Field, InstanceOf, SerializeAsAny

from fuploader_dagster.contracts.notifier import NotifierSettings


def _one_or_several(value: Any) -> Any:
    if value is None:
        return ()
    return (value,) if isinstance(value, NotifierSettings) else value


Notify = Annotated[
    tuple[SerializeAsAny[InstanceOf[NotifierSettings]], ...],
    Field(max_length=8),
    BeforeValidator(_one_or_several),
]


class _Notifies(Protocol):
    """The settings that have to go together."""

    @property
    def notify(self) -> Sequence[NotifierSettings]: ...
    @property
    def seal_each(self) -> str: ...


def check_notify(settings: _Notifies) -> None:
    """Raise `ValueError` if notices do not go with the other settings."""
    if not settings.notify:
        return
    if settings.seal_each != "message":
        raise ValueError(
            "notify is about tasks, each a message with an archive of its own: set seal_each: "
            "message"
        )
    told = [one.describe() for one in settings.notify]
    if twice := [name for at, name in enumerate(told) if name in told[:at]]:
        raise ValueError(f"notify has {twice[0]} twice: everything would be told twice")
