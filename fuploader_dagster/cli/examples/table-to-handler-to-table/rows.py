"""What becomes of an answer of the handler: this is the file to edit."""

from __future__ import annotations

from fuploader_dagster import Item


def rows(item: Item) -> dict[str, str]:
    """One row of `doc_ent_map`."""
    found = item.json()
    return {"doc_id": found["doc_id"], "ent_list_str": ",".join(found["ent_list"])}
