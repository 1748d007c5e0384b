"""The note that a processor works for no item: who ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuploader_dagster.delivery import processor_trouble
from fuploader_dagster.delivery.processor_trouble import (
    Answers,
    find_processor_trouble,
    note_processor_trouble,
)
from fuploader_dagster.disk.layout import Layout


def test_trouble_that_another_run_notes_meanwhile_ends_with_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_trouble, "ANSWERS_NOTED_EVERY_SECONDS", 0)
    layout = Layout(tmp_path)
    answers = Answers(layout)
    for _ in range(2):
        note_processor_trouble(layout, "nobody answers")
        assert find_processor_trouble(layout) is not None
        answers.note()
        assert find_processor_trouble(layout) is None
