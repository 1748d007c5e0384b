"""Tables on narrow terminals: what people copy is whole."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from fuploader_dagster.cli import console

COLUMNS = ("pipeline", "partition", "size", "problem")
KEY = "20261127T223714489Z-local-s0-000010"
ROWS = [
    ("documents", KEY, "905.4 KiB", "the store is away"),
    ("消息", "k" * 200, "1 byte", "x" * 300),
]


@pytest.mark.parametrize("width", [1, 20, 80, 79, 400])
def test_no_word_of_a_table_is_cut_whatever_the_width(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long word of the last column is broken, and all of it is there."""
    text = StringIO()
    monkeypatch.setattr(console, "console", Console(file=text, width=width))
    console.show_table(COLUMNS, iter(ROWS))
    said = text.getvalue()
    words = [word for row in (COLUMNS, *ROWS) for cell in row[:3] for word in cell.split()]
    assert [word for word in words if word not in said] == []
    assert "…" not in said
    assert said.count("x") == 300
    assert all(word in said for word in ["the", "store", "is", "away"])


def test_a_table_without_rows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = StringIO()
    monkeypatch.setattr(console, "console", Console(file=text, width=80))
    console.show_table(COLUMNS, [], none="no partition is sealed")
    assert text.getvalue() == "no partition is sealed\n"
