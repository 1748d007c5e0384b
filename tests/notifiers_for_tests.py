"""A notifier that tests put into pipelines: a file gets a line for each notice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuploader_dagster.contracts.notifier import Notice, Notifier, NotifierSettings
from fuploader_dagster.errors import NotifierRefused, NotifierUnavailable


class Journal(Notifier):
    most_at_once = 2

    def __init__(self, settings: JournalNotices) -> None:
        self._settings = settings

    def send(self, notices: Sequence[Notice]) -> None:
        if (self._settings.path.with_suffix(".down")).exists():
            raise NotifierUnavailable("the journal is closed")
        if (self._settings.path.with_suffix(".refuses")).exists():
            raise NotifierRefused("the journal takes none of this")
        lines = "".join(json.dumps({**one.content, "word": one.word}) + "\n" for one in notices)
        file = os.open(self._settings.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, lines.encode())
        os.close(file)

    def close(self) -> None:
        """Nothing is open."""


class JournalNotices(NotifierSettings):
    """Settings of `Journal`. With a file of the same name that ends in `.down` nobody answers, with
    one in `.refuses` all is refused."""

    path: Path

    def notifier(self) -> Notifier:
        return Journal(self)

    def describe(self) -> str:
        return f"the journal {self.path.name}"


def told(path: Path) -> list[dict[str, Any]]:
    """All that was told, in its order."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def words_of(path: Path, name: str) -> list[str]:
    """What was told of one task, by the name of its file, each notice once."""
    found = [one for one in told(path) if one["name"] == name]
    return list({one["id"]: one["word"] for one in found}.values())
