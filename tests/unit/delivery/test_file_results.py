"""Results that are files: committed without being read, whatever a processor does with folders."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.catalog.catalog import Catalog
from fuploader_dagster.contracts.processor import (
    Answer,
    Failure,
    FileResult,
    Item,
    Partial,
    Processor,
    ProcessorSettings,
)
from fuploader_dagster.dead_letters.letters import DeadLetter, numbered_dead_letters, requeued_ids
from fuploader_dagster.delivery import item_commit
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.process import process_partitions, unaccounted
from fuploader_dagster.delivery.repack import repack_partitions
from fuploader_dagster.delivery.reprocess import process_again
from fuploader_dagster.delivery.scrub import examine
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.delivery.slot_items import ItemsHere
from fuploader_dagster.disk.crash_points import CrashPoint, observe
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.intake.disk_space import Unshipped
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.formats import contents_of_results
from fuploader_dagster.slots.processed import ProcessedSlot, find_processed
from fuploader_dagster.slots.receipts import find_receipt
from fuploader_dagster.slots.sealing import SealedSlot
from tests.lives import pack_by_hand
from tests.processors_for_tests import Script, ScriptWithFolders, calls, later, script
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


def stopped(settings: Pipeline, slot: SealedSlot) -> None:
    (outcome,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(outcome, Failed)
    assert "stopped" in outcome.error


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
    named = "c: 404; d: 404; e: 404; and 1 more"
    assert f"4 of its parts failed and 2 have results: {named}" in letter.reason
    assert json.loads(letter.body) == {"files": ["c", "d", "e", "f"]}
    (archive,) = packed(settings)
    with Archive.open(archive) as opened:
        assert opened.manifest is not None
        assert opened.manifest.failure_count == 4
        listed = opened.manifest.failures
        assert (listed[0].item, listed[0].name, listed[0].reason) == ("task", "c", "404")
        assert listed[3].detail == {"status": 404}
        assert opened.failures() == listed
    (again,) = process_again([list(numbered_dead_letters(settings.layout))], settings)
    rest = processed(settings, again)
    assert [one.name for one in rest.entries()] == [f"results/{name}" for name in "cdef"]
    assert len(letters_of(settings)) == 1


class Killed(BaseException):
    """In place of a kill."""


def stop_at(point: CrashPoint) -> Callable[[CrashPoint], None]:
    def look(reached: CrashPoint) -> None:
        if reached is point:
            raise Killed

    return look


def packed(settings: Pipeline) -> list[Path]:
    assert all(isinstance(one, Done) for one in ship(settings, settings.store.open()))
    return sorted(Path(settings.store.path).rglob("*.tar.zst"))  # type: ignore[attr-defined]


class Odd(Processor):
    """Gives what a function makes in the folder of each item, named by the item's content."""

    uses_folder = True

    async def process(self, items: Sequence[Item]) -> Sequence[Answer]:
        return [ODD[item.content.decode()](item.folder) for item in items]  # type: ignore[arg-type]

    async def close(self) -> None:
        """Nothing is open."""


class OddSettings(ScriptWithFolders):
    """Settings of `Odd`."""

    def processor(self) -> Processor:
        return Odd()


def stated(path: Path, name: str = "result", content: bytes = b"content") -> FileResult:
    return FileResult(name, path, len(content), sha256(content).digest())


def in_folder(folder: Path, **values: Any) -> list[FileResult]:
    (folder / "file").write_bytes(b"content")
    return [replace(stated(folder / "file"), **values)]


def deep(folder: Path) -> list[FileResult]:
    (folder / "a" / "b").mkdir(parents=True, exist_ok=True)
    (folder / "a" / "b" / "c").write_bytes(b"content")
    return [stated(folder / "a" / "b" / "c")]


def link(folder: Path, target: Path | str) -> list[FileResult]:
    (folder / "link").symlink_to(target)
    return [stated(folder / "link")]


def through_a_link(folder: Path) -> list[FileResult]:
    (folder / "real").mkdir()
    (folder / "real" / "file").write_bytes(b"content")
    (folder / "link").symlink_to("real")
    return [stated(folder / "link" / "file")]


def pipe(folder: Path) -> list[FileResult]:
    os.mkfifo(folder / "pipe")
    return [stated(folder / "pipe", content=b"")]


def without_folder(folder: Path) -> list[FileResult]:
    found = in_folder(folder)
    shutil.rmtree(folder)
    return found


def growing(folder: Path) -> list[FileResult]:
    """The file changes while the processor works for the next item of its batch."""
    found = in_folder(folder)
    asyncio.get_running_loop().call_soon((folder / "file").write_bytes, b"later content")
    return found


def swapped(folder: Path) -> list[FileResult]:
    """A link takes the file's place after it was looked at."""
    found = in_folder(folder)

    def swap() -> None:
        (folder / "file").unlink()
        (folder / "file").symlink_to("/etc/hostname")

    asyncio.get_running_loop().call_soon(swap)
    return found


GOOD = {"in_folder": in_folder, "deep": deep}
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absolute": (lambda _: [stated(Path("/etc/passwd"))], "not a file in the item's folder"),
    "up": (lambda f: [stated(f / ".." / "x")], "not a file in the item's folder"),
    "sibling": (lambda f: [stated(f.with_name("77") / "x")], "not a file in the item's folder"),
    "itself": (lambda f: [stated(f)], "not a file in the item's folder"),
    "nul": (lambda f: [stated(f / "a\0b")], "not a file in the item's folder"),
    "no path": (lambda f: [stated(None)], "not a file in the item's folder"),  # type: ignore[arg-type]
    "link": (lambda f: link(f, "/etc/passwd"), "is no regular file"),
    "link here": (lambda f: [*in_folder(f), *link(f, "file")], "is no regular file"),
    "through a link": (through_a_link, "cannot be found in the item's folder"),
    "pipe": (pipe, "is no regular file"),
    "folder": (lambda f: [stated(deep(f)[0].path.parent)], "is no regular file"),
    "missing": (lambda f: [stated(f / "missing")], "No such file or directory"),
    "without folder": (without_folder, "No such file or directory"),
    "long path": (lambda f: [stated(f / ("x" * 300))], "File name too long"),
    "growing": (growing, "was changed after the processor gave it"),
    "swapped": (swapped, "is no regular file"),
    "other size": (lambda f: in_folder(f, size_bytes=8), "has 7 bytes, and the processor stated 8"),
    "negative": (lambda f: in_folder(f, size_bytes=-7), "the processor stated -7"),
    "short digest": (lambda f: in_folder(f, sha256=b"1"), "not a digest of 32 bytes"),
    "hex digest": (lambda f: in_folder(f, sha256="0" * 32), "not a digest of 32 bytes"),
    "name up": (lambda f: in_folder(f, name="../x"), "path separator"),
    "name dots": (lambda f: in_folder(f, name=".."), "means a directory"),
    "name slash": (lambda f: in_folder(f, name="a/b"), "path separator"),
    "name nul": (lambda f: in_folder(f, name="a\0b"), "control character"),
    "name long": (lambda f: in_folder(f, name="x" * 300), "300 bytes"),
    "name surrogate": (lambda f: in_folder(f, name="\ud800"), "surrogate"),
    "headers": (lambda f: in_folder(f, headers={"a": 1}), "are not texts"),
    "no headers": (lambda f: in_folder(f, headers=None), "are not texts"),
    "large headers": (lambda f: in_folder(f, headers={"a": "x" * 17_000}), "at most 16,384"),
    "odd headers": (lambda f: in_folder(f, headers={"a": "\ud800"}), "cannot be stored"),
    "failure": (lambda f: Partial(in_folder(f), ["no"]), "not a Failure"),  # type: ignore[list-item]
    "detail": (lambda f: Partial([], [Failure("a", "b", {"c": f})]), "is not a JSON object"),
    "huge": (lambda _: Partial([], [Failure("a", "b", {"c": 2**70})]), "is not a JSON object"),
    "large detail": (lambda _: Partial([], [Failure("", "", {"c": "x" * 5000})]), "at most 4,096"),
    "rest": (lambda f: Partial(in_folder(f), [Failure("a", "b")], "text"), "not bytes"),  # type: ignore[arg-type]
}
ODD: dict[str, Callable[[Path], Any]] = {**GOOD, **{name: make for name, (make, _) in BAD.items()}}


def test_only_a_file_in_the_items_folder_becomes_a_result(tmp_path: Path) -> None:
    settings = made(tmp_path, OddSettings(concurrency=1))
    slot = sealed(settings, {f"{n:02d}": name.encode() for n, name in enumerate(ODD)})
    found = processed(settings, slot)
    entries = found.entries()
    assert list(contents_of_results(found, entries)) == [b"content"] * len(GOOD)
    reasons = {letter.body.decode(): letter.reason for letter in letters_of(settings)}
    assert reasons.keys() == BAD.keys()
    assert [name for name, reason in reasons.items() if BAD[name][1] not in reason] == []


def test_a_file_of_a_processor_without_folders_is_refused(tmp_path: Path) -> None:
    settings = made(tmp_path, Script())
    slot = sealed(settings, {"a": script(outside=str(tmp_path / "x"))})
    assert processed(settings, slot).seal.failed == 1
    assert "its items have no folder" in letters_of(settings)[0].reason


def test_names_of_results_are_free_and_no_name_is_one_on_the_disk(tmp_path: Path) -> None:
    settings = made(tmp_path)
    names = ["same", "same", "x" * 255, "caf\u00e9", "cafe\u0301", "CON", "index", "00000000"]
    found = processed(settings, sealed(settings, {"a": script(files=names)}))
    assert [one.name.removeprefix("results/") for one in found.entries()] == [
        *("same", "same~2", "x" * 255, "caf\u00e9", "cafe\u0301", "CON", "index", "00000000"),
    ]
    files = sorted(path.name for path in (found.directory / "files").iterdir())
    assert files == [f"{number:08d}" for number in range(len(names))]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (found.directory / "files").iterdir()}
    assert modes == {0o600}


def test_what_an_attempt_left_in_the_folder_is_there_for_the_next_one(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    process = ScriptWithFolders(journal=journal, concurrency=1)
    settings = made(tmp_path, process, commit_messages=5, prefetch_count=10)
    names = [f"f{n}" for n in range(20)]
    files = {name: script(files=[name], retries=2 * (name == "f7")) for name in names}
    slot = sealed(settings, {**files, "last": script(files=["last"], stop=True)})
    stopped(settings, slot)
    directory = settings.layout.processed(0, 1)
    assert [path.name for path in (directory / "work").iterdir()] == ["20"]
    assert len(processed(settings, slot).entries()) == 21
    lines = [line for line in journal.read_text().splitlines() if line.startswith(("made", "fou"))]
    assert sorted(lines[:20]) == sorted(f"made {name}" for name in names)
    assert lines[20:] == ["made last", "found last"]


def test_another_processor_begins_again_in_an_empty_folder(tmp_path: Path) -> None:
    settings = made(tmp_path)
    slot = sealed(settings, {"a": script(files=["x"], stop=True)})
    stopped(settings, slot)
    journal = tmp_path / "journal"
    changed = made(tmp_path, ScriptWithFolders(edition=2, journal=journal))
    processed(changed, slot)
    assert "made x" in journal.read_text()


def test_bytes_in_folders_and_files_count_as_unshipped_once(tmp_path: Path) -> None:
    settings = made(tmp_path)
    slot = sealed(settings, {"a": script(files=["x"], times=50_000, stop=True)})
    before = Unshipped(settings.layout).bytes()
    stopped(settings, slot)
    size = 50_000 * len(b"a x ")
    watch = Unshipped(settings.layout)
    assert size <= watch.bytes() - before < size + 10_000
    file = settings.layout.processed(0, 1) / "files" / "00000000"
    (in_work,) = (settings.layout.processed(0, 1) / "work" / "0").iterdir()
    os.link(in_work, file)
    assert size <= watch.bytes() - before < size + 10_000
    processed(settings, slot)
    assert size <= watch.bytes() - before < size + 10_000
    packed(settings)
    assert watch.bytes() == 0


def test_files_that_are_not_what_was_committed_are_made_again(tmp_path: Path) -> None:
    settings = made(tmp_path)
    slot = sealed(settings, {"a": script(files=["x", "y"])})
    found = processed(settings, slot)
    (found.directory / "files" / "00000001").write_bytes(b"b y ")
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Failed)
    assert "'results/y'" in outcome.error
    assert "moved to" in outcome.error
    packed(settings)
    assert archived_files(tmp_path / "objects")["results/y"] == [b"a y "]


def test_a_second_attempt_that_ends_otherwise_leaves_one_letter_that_waits(tmp_path: Path) -> None:
    settings = made(tmp_path, commit_messages=100, prefetch_count=200)
    task = script(files=["a"], missing=["b", "c"])
    slot = sealed(settings, {"task": task, "end": script(bad="no")})
    observe(stop_at(CrashPoint.DEAD_LETTERS_KEPT))
    try:
        with pytest.raises(Killed):
            list(process_partitions([slot.seal.partition], settings))
    finally:
        observe(None)
    assert len(letters_of(settings)) == 2
    later.update({"task": script(files=["a", "b"], missing=["c"])})
    try:
        found = processed(settings, slot)
    finally:
        later.clear()
    assert [one.name for one in found.entries()] == ["results/a", "results/b"]
    sent = requeued_ids(settings.layout)
    waiting = [letter for key, letter in numbered_dead_letters(settings.layout) if key not in sent]
    assert [json.loads(letter.body) for letter in waiting] == [{"bad": "no"}, {"files": ["c"]}]


@pytest.mark.parametrize("form", ["tar.zst", "zip", "jsonl.zst", "parquet"])
def test_files_go_the_whole_way_in_every_format(form: str, tmp_path: Path) -> None:
    settings = made(tmp_path, archive_format=form)
    task = script(files=["x", "large"], missing=["z"], times=300_000)
    slot = sealed(settings, {"a": task, "b": script()})
    found = processed(settings, slot)
    assert [item.name for _, item in ItemsHere(slot, found, settings.layout).read()] == [
        *("x", "large", "b"),
    ]
    partition = slot.seal.partition
    assert all(isinstance(one, Done) for one in ship(settings, settings.store.open()))
    finder = ArchiveFinder({settings.name: settings})
    with finder.open(partition) as archive:
        assert not archive.verify().damages
        assert not archive.unproven.count
        assert archive.read("results/large") == b"a large " * 300_000
        assert archive.read("results/b") == b"b-0"
        assert sorted(archive.results()) == ["results/b", "results/large", "results/x"]
        (member,) = [one for one in archive.members if one.name == "results/x"]
        assert from_text(member.headers)["etag"] == "x"
        assert [one.name for one in archive.failures()] == ["z"]
    with Catalog.to_read(settings.layout.catalog) as catalog:
        assert [hit.name for hit in catalog.find("results/*")] == [
            *("results/b", "results/large", "results/x"),
        ]
    again = settings.model_copy(update={"archive_format": "tar.zst", "key": "again/{archive}"})
    (outcome,) = repack_partitions([partition], again, again.store.open(), finder.open)
    assert isinstance(outcome, Done), outcome
    with ArchiveFinder({again.name: again}).open(partition) as archive:
        assert archive.read("results/large") == b"a large " * 300_000
        assert [one.name for one in archive.failures()] == ["z"]
        assert archive.manifest is not None
        assert archive.manifest.failure_count == 1
    receipt = find_receipt(settings.layout, partition)
    assert receipt is not None
    assert not examine(receipt, lambda one: finder.of_receipt(one, settings).source).problems


def test_a_packer_of_ones_own_gets_the_files(tmp_path: Path) -> None:
    settings = made(tmp_path, packer=pack_by_hand, archive_suffix=".tar.zst")
    slot = sealed(settings, {"a": script(files=["x", "y"], times=400_000)})
    processed(settings, slot)
    packed(settings)
    found = archived_files(tmp_path / "objects")
    assert found["results/y"] == [b"a y " * 400_000]


def test_committing_files_holds_up_no_item_in_work(tmp_path: Path) -> None:
    settings = made(tmp_path)
    slot = sealed(settings, {"a": script(files=["x"])})
    threads: list[threading.Thread] = []

    def look(point: CrashPoint) -> None:
        if point is CrashPoint.DATA_WRITTEN:
            threads.append(threading.current_thread())

    observe(look)
    try:
        processed(settings, slot)
    finally:
        observe(None)
    assert threads
    assert threading.current_thread() not in threads


def test_a_partial_item_of_a_processor_without_folders_is_in_a_segment(tmp_path: Path) -> None:
    settings = made(tmp_path, Script())
    found = processed(settings, sealed(settings, {"a": script(missing=["x"]), "b": script()}))
    assert [one.name for one in found.entries()] == ["results/a", "results/b"]
    assert (found.seal.version, found.seal.processing.version, found.seal.partial) == (2, 1, 1)
    assert [part.name for part in found.failures()] == ["x"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_directory_of_an_older_version_is_continued_and_read(
    finished: bool, tmp_path: Path
) -> None:
    settings = made(tmp_path, Script(concurrency=1), commit_messages=1, prefetch_count=2)
    slot = sealed(settings, {"a": script(), "b": script(stop=True)})
    stopped(settings, slot)
    directory = settings.layout.processed(0, 1)
    if finished:
        processed(settings, slot)
    for name in ("processing.json", *(("seal.json",) if finished else ())):
        noted = json.loads((directory / name).read_bytes())
        for added in ("slot_format", "partial", "failures"):
            noted.pop(added, None)
            noted.get("processing", {}).pop(added, None)
        (directory / name).write_text(json.dumps(noted))
    assert len(processed(settings, slot).entries()) == 2
    assert calls["a"] == 1
    packed(settings)


@pytest.mark.parametrize("size", ["within", "behind"])
def test_a_wrong_digest_is_found_before_packing_in_the_first_bytes_of_a_slot(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "behind":
        monkeypatch.setattr(item_commit, "COMPARED_BYTES", 3)
    settings = made(tmp_path)
    slot = sealed(
        settings, {"a": script(files=["x"]), "b": script(files=["y", "z"], digest="0" * 64)}
    )
    found = processed(settings, slot)
    if size == "behind":
        assert len(found.entries()) == 3
        return
    assert [one.name for one in found.entries()] == ["results/x"]
    (letter,) = letters_of(settings)
    assert "the processor stated " + "0" * 64 in letter.reason
    packed(settings)
    assert archived_files(tmp_path / "objects")["results/x"] == [b"a x "]
