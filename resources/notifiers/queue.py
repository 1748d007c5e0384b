"""Notices published into a queue: any that messages can come from.

What must always hold: a notice counts as sent when the queue has confirmed it. Its body is JSON,
its id is in it; headers and properties it has none, so that every queue takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from pydantic import InstanceOf, SerializeAsAny

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.notifier import Notice, Notifier, NotifierSettings
from fuploader_dagster.contracts.source import MessagePublisher, SourceSettings
from fuploader_dagster.errors import (
    NotifierRefused,
    NotifierUnavailable,
    SourceRefused,
    SourceUnavailable,
)
from fuploader_dagster.settings.loading import load_backend


class QueueNotices(NotifierSettings):
    """A queue that gets each notice as a message of JSON."""

    to: SerializeAsAny[InstanceOf[SourceSettings]]
    """The queue, with its `kind`, as in `source`."""

    def __init__(self, **values: Any) -> None:
        if isinstance(values.get("to"), dict):
            values = {**values, "to": load_backend("source", values["to"], "notify.to")}
        super().__init__(**values)

    def notifier(self) -> QueueNotifier:
        return QueueNotifier(self)

    def describe(self) -> str:
        return f"notices in {self.to.describe()}"

    def examine(self) -> Iterator[Diagnosis]:
        publisher = self.to.publisher()
        try:
            publisher.backlog()
        finally:
            publisher.close()
        yield Diagnosis("notifier", "good", self.describe())


class QueueNotifier(Notifier):
    """Keeps its publisher open between notices."""

    def __init__(self, settings: QueueNotices) -> None:
        self._settings = settings
        self._publisher: MessagePublisher | None = None

    def send(self, notices: Sequence[Notice]) -> None:
        bodies: list[tuple[bytes, Mapping[str, Any]]] = [
            (msgspec.json.encode(one.content), {}) for one in notices
        ]
        where = f"cannot publish to {self._settings.describe()}"
        try:
            if self._publisher is None:
                self._publisher = self._settings.to.publisher()
            self._publisher.publish(bodies)
        except SourceUnavailable as error:
            self.close()
            raise NotifierUnavailable(f"{where}: {error.message}", hint=error.hint) from error
        except SourceRefused as error:
            self.close()
            raise NotifierRefused(f"{where}: {error.message}", hint=error.hint) from error

    def close(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()
