"""Results that are files: committed without being read, whatever a processor does with folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.dead_letters.letters import DeadLetter, numbered_dead_letters
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.process import process_partitions, unaccounted
from fuploader_dagster.delivery.reprocess import process_again
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.formats import contents_of_results
from fuploader_dagster.slots.processed import ProcessedSlot, find_processed
from fuploader_dagster.slots.sealing import SealedSlot
from tests.processors_for_tests import ScriptWithFolders, calls, script
from tests.settings import archived_files, pipeline, sealed


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    calls.clear()
    yield


def made(folder: Path, process: ProcessorSettings | None = None, **values: Any) -> Pipeline:
    return pipeline(folder, process=process or ScriptWithFolders(), **values)


def processed(settings: Pipeline, slot: SealedSlot) -> ProcessedSlot:
    (outcome,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(outcome, Done), outcome
    found = find_processed(slot, settings.layout)
    assert found is not None
    assert not unaccounted([found.seal], settings.layout)
    return found


def letters_of(settings: Pipeline) -> list[DeadLetter]:
    return [letter for _, letter in numbered_dead_letters(settings.layout)]


def test_files_and_contents_are_results_side_by_side(tmp_path: Path) -> None:
    settings = made(tmp_path)
    files = {"a": script(files=["x", "y"]), "b": script(results=2), "c": script(files=["x"])}
    slot = sealed(settings, files)
    found = processed(settings, slot)
    entries = found.entries()
    wanted = {
        "results/x": b"a x ",
        "results/y": b"a y ",
        "results/b": b"b-0",
        "results/b~2": b"b-1",
        "results/x~2": b"c x ",
    }
    assert [one.name for one in entries] == list(wanted)
    assert list(contents_of_results(found, entries)) == list(wanted.values())
    assert from_text(entries[0].headers) == {"content-type": "text/plain", "etag": "x"}
    assert sorted(path.name for path in found.directory.iterdir()) == [
        *("files", "index", "outcomes", "processing.json", "seal.json"),
    ]
    assert all(isinstance(one, Done) for one in ship(settings, settings.store.open()))
    assert archived_files(tmp_path / "objects") == {
        name: [content] for name, content in {**files, **wanted}.items()
    }
    assert not found.directory.exists()


def test_a_partial_item_keeps_its_results_and_one_letter_asks_for_the_rest(tmp_path: Path) -> None:
    settings = made(tmp_path)
    task = script(files=["a", "b"], missing=["c", "d", "e", "f"])
    slot = sealed(settings, {"task": task, "other": script(files=["z"])})
    found = processed(settings, slot)
    assert [one.name for one in found.entries()] == ["results/a", "results/b", "results/z"]
    assert (found.seal.failed, found.seal.partial, found.seal.failures) == (0, 1, 4)
    (letter,) = letters_of(settings)
    assert letter.item is not None
    assert (letter.item.position, letter.item.failures) == (0, 4)
    assert "4 parts failed and 2 have results: c: 404; d: 404; e: 404; and 1 more" in letter.reason
    assert json.loads(letter.body) == {"files": ["c", "d", "e", "f"]}
    (archive,) = packed(settings)
    with Archive.open(archive) as opened:
        assert opened.manifest is not None
        assert opened.manifest.failure_count == 4
        listed = opened.manifest.failures
        assert (listed[0].item, listed[0].name, listed[0].reason) == ("task", "c", "404")
        assert listed[3].detail == {"status": 404}
    (again,) = process_again(list(numbered_dead_letters(settings.layout)), settings)
    rest = processed(settings, again)
    assert [one.name for one in rest.entries()] == [f"results/{name}" for name in "cdef"]
    assert len(letters_of(settings)) == 1


def packed(settings: Pipeline) -> list[Path]:
    assert all(isinstance(one, Done) for one in ship(settings, settings.store.open()))
    return sorted(Path(settings.store.path).rglob("*.tar.zst"))  # type: ignore[attr-defined]
