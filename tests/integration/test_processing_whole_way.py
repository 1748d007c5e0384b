"""Processing under `dagster dev`: through a user's functions, and again with new code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from tests.integration.test_backfill import backfill
from tests.servers.dagster_dev import DagsterDev
from tests.settings import archived_files, archives_in, embedded_parts

APP = """
from fuploader_dagster import Item, Result, processor

@processor(route=r"upper/(?P<ending>[a-z]+)")
def upper(item: Item, ending: str) -> Result:
    if b"bad" in item.content:
        raise ValueError("this one is bad")
    return Result(item.content.upper(), f"{item.name}.{ending}", content_type="text/plain")

@processor
async def length(item: Item) -> dict:
    return {"length": len(item.content), "edition": 1}
"""
MESSAGES = 600


def published(number: int) -> tuple[bytes, dict[str, Any]]:
    headers: dict[str, Any] = {"message_id": f"m{number:03d}"}
    if number % 2:
        headers["cmd"] = "upper/txt"
    return (b"bad %d" if number % 100 == 1 else b"text %d") % number, headers


@pytest.mark.timeout(900)
def test_what_functions_made_is_stored_beside_the_originals_and_made_again_with_new_code(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    configuration = {
        "storage_root": "data",
        "pipelines": {
            "docs": {
                **embedded_parts(),
                "message_format": "raw",
                "headers": ["cmd"],
                "process": {"kind": "functions", "module": "app", "workers": 1},
                "seal_messages": 200,
                "seal_age_seconds": 5,
            }
        },
    }
    publisher = EmbeddedQueue(path=folder / "queue").publisher()
    publisher.publish(published(number) for number in range(MESSAGES))
    publisher.close()
    dev = DagsterDev(folder, configuration, {})
    dev.start()
    try:
        dev.wait_for(lambda: stored(dev) >= MESSAGES, "all messages to be stored")
        dev.wait_for(
            lambda: (
                set(dev.materialized("docs", "processed_slot"))
                == set(dev.materialized("docs", "uploaded_archive"))
                == set(dev.materialized("docs", "sealed_slot"))
            ),
            "the runs to report everything",
        )
        found = archived_files(folder / "objects")
        assert found == {name: [content] for name, content in wanted(edition=1).items()}
        letters = [letter.item for _, letter in numbered_dead_letters(Layout(folder / "data/docs"))]
        assert sorted(item.name for item in letters if item) == bad_names()
        before = {path: path.read_bytes() for path in archives_in(folder / "objects")}
        (folder / "app.py").write_text(APP.replace('"edition": 1', '"edition": 2'))
        stored_ones = dev.materialized("docs", "processed_slot")
        backfill(dev, ["processed_slot"], stored_ones, redo="true")
    finally:
        dev.stop()
    after = {path: path.read_bytes() for path in archives_in(folder / "objects")}
    assert before.items() <= after.items()
    assert len(after) == 2 * len(before)
    again = archived_files(folder / "objects")
    assert {name: sorted(contents) for name, contents in again.items()} == {
        name: sorted([content, wanted(edition=2)[name]])
        for name, content in wanted(edition=1).items()
    }


def bad_names() -> list[str]:
    return [f"m{number:03d}" for number in range(MESSAGES) if number % 100 == 1]


def wanted(*, edition: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number in range(MESSAGES):
        content, headers = published(number)
        name = str(headers["message_id"])
        files[name] = content
        if "cmd" not in headers:
            made = {"length": len(content), "edition": edition}
            files[f"results/{name}"] = json.dumps(made).encode()
        elif name not in bad_names():
            files[f"results/{name}.txt"] = content.upper()
    return files


def stored(dev: DagsterDev) -> int:
    """Messages in archives that the store has confirmed, by the receipts."""
    receipts = (dev.folder / "data" / "docs" / "receipts").glob("*.jsonl")
    lines = [line for path in receipts for line in path.read_text().splitlines()]
    return sum(json.loads(line)["messages"] for line in lines)
