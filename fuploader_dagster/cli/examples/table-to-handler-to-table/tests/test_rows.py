"""What the project's own function makes of an answer."""

from __future__ import annotations

from fuploader_dagster import Item
from rows import rows


def test_names_are_joined() -> None:
    answer = Item("a", b'{"doc_id": "d1", "ent_list": ["Lisbon", "Osaka"]}')
    assert rows(answer) == {"doc_id": "d1", "ent_list_str": "Lisbon,Osaka"}
