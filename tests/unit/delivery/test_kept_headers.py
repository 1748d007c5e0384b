"""A processor gets the headers that were kept, and what comes out has a content type."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.contracts.processor import Item, Processor, Result
from fuploader_dagster.dead_letters.letters import as_message, numbered_dead_letters
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.reprocess import process_again
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.header_text import from_text, to_text
from fuploader_dagster.errors import BadItem
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.slot import SlotOwner
from tests.processors_for_tests import Script, Scripted
from tests.settings import archives_in, pipeline

KEPT = {"a.json": {"cmd": "größe/64", "content-type": "image/png"}, "b.json": {}}
BAD = {"cmd": "bad", "content-type": "image/png"}


class Showing(Script):
    """Its results are the headers of the items."""

    def processor(self) -> Processor:
        return _Showing(self)


class _Showing(Scripted):
    async def process(self, items: Sequence[Item]) -> Sequence[Sequence[Result] | BadItem]:
        return [self._shown(item) for item in items]

    @staticmethod
    def _shown(item: Item) -> Sequence[Result] | BadItem:
        if item.headers.get("cmd") == "bad":
            return BadItem("no such command")
        shown = json.dumps(dict(item.headers)).encode()
        return [Result(shown, content_type="application/json"), Result(b"", name="plain")]


def shipped(folder: Path) -> Pipeline:
    settings = pipeline(folder, process=Showing(), headers=["cmd", "content-type"])
    with SlotOwner(settings, 0) as slot:
        for name, headers in [*KEPT.items(), ("bad.json", BAD)]:
            slot.add(name, b"{}", to_text(headers))
        assert slot.seal("request") is not None
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done), outcome
    return settings


def test_originals_and_results_have_their_headers_in_one_archive(tmp_path: Path) -> None:
    shipped(tmp_path)
    (path,) = archives_in(tmp_path / "objects")
    with Archive.open(path) as archive:
        found = {file.name: file for file in archive.files(lambda _: True)}
        assert archive.verify().damages == []
    originals = {**KEPT, "bad.json": BAD}
    assert {name: from_text(found[name].headers) for name in originals} == originals
    results = {name: found[name] for name in found.keys() - originals.keys()}
    for name, headers in KEPT.items():
        shown = results[f"results/{name}"]
        assert json.loads(shown.content) == headers
        assert from_text(shown.headers) == {"content-type": "application/json"}
    plain = [one for one in results.values() if one.name.startswith("results/plain")]
    assert [one.headers for one in plain] == ["", ""]


@pytest.mark.parametrize("still_on", [True, False])
def test_an_item_that_is_processed_again_has_its_headers(tmp_path: Path, still_on: bool) -> None:
    """Also where the setting was switched off meanwhile."""
    settings = shipped(tmp_path)
    if not still_on:
        settings = settings.model_copy(update={"headers": ()})
    (again,) = process_again([list(numbered_dead_letters(settings.layout))], settings)
    assert [(e.name, from_text(e.headers)) for e in again.entries()] == [("bad.json", BAD)]


def test_an_item_that_is_sent_to_the_queue_has_its_headers(tmp_path: Path) -> None:
    ((_, letter),) = numbered_dead_letters(shipped(tmp_path).layout)
    message = as_message(letter, "raw")
    assert (message.message_id, message.attributes) == ("bad.json", {"headers": BAD})
