"""Redo: stored partitions are processed again; nothing that is stored is touched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.catalog.catalog import Catalog
from fuploader_dagster.catalog.rebuild import rebuild
from fuploader_dagster.contracts.object_store import UnfinishedUpload
from fuploader_dagster.contracts.processor import Item, Processor, Result
from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.delivery import recovery
from fuploader_dagster.delivery.attempts import Done, Failed, Outcome
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.process_step import ItemsDone
from fuploader_dagster.delivery.processor_trouble import find_processor_trouble
from fuploader_dagster.delivery.redo import redo_partitions
from fuploader_dagster.delivery.repack import repack_partitions
from fuploader_dagster.delivery.settled_letters import settled
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.crash_points import CrashPoint, observe
from fuploader_dagster.disk.header_text import from_text, to_text
from fuploader_dagster.errors import BadItem
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, find_receipt
from fuploader_dagster.slots.slot import SlotOwner
from tests.lives import pack_by_hand
from tests.processors_for_tests import Script, Scripted, ScriptWithFolders, later, script
from tests.settings import pipeline, sealed

FILES = {f"{n}.json": script(results=n % 3) for n in range(9)} | {"消息.json": script()}


class Edited(Script):
    """The processor after somebody changed its code."""

    edition: int = 2

    def processor(self) -> Processor:
        return _Edited(self)


class _Edited(Scripted):
    async def process(self, items: Sequence[Item]) -> Sequence[Sequence[Result] | BadItem]:
        return [[Result(item.content + b" edited")] for item in items]


def made(folder: Path, process: Script | None = None, **values: Any) -> Pipeline:
    return pipeline(folder, process=process or Script(), **values)


def shipped(settings: Pipeline, files: dict[str, bytes] = FILES) -> Receipt:
    partition = sealed(settings, files).seal.partition
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done), outcome
    return receipt_of(settings, partition)


def receipt_of(settings: Pipeline, partition: str) -> Receipt:
    receipt = find_receipt(settings.layout, partition)
    assert receipt is not None
    return receipt


def redone(settings: Pipeline, partition: str, items: ItemsDone | None = None) -> Outcome:
    (outcome,) = redo_partitions(
        [partition],
        settings,
        settings.store.open(),
        lambda key: Archive.open(stored_at(settings, receipt_of(settings, key))),
        items=items,
    )
    return outcome


def stored_at(settings: Pipeline, receipt: Receipt) -> Path:
    return objects(settings) / receipt.key


def objects(settings: Pipeline) -> Path:
    return settings.storage_root.parent / "objects"


def content_of(path: Path) -> dict[str, bytes]:
    with Archive.open(path) as archive:
        return {name: archive.read(name) for name in archive.names()}


def edited(files: dict[str, bytes] = FILES) -> dict[str, bytes]:
    return {f"results/{name}": content + b" edited" for name, content in files.items()}


@pytest.mark.parametrize(
    "key", ["{pipeline}/{archive}", "{pipeline}/{partition}.tar.zst", "plain/{partition}"]
)
@pytest.mark.parametrize("packer", [None, pack_by_hand])
def test_todays_code_makes_another_archive_and_the_first_one_stays(
    tmp_path: Path, key: str, packer: Any
) -> None:
    before = made(tmp_path, key=key, packer=packer)
    first = shipped(before)
    first_bytes = stored_at(before, first).read_bytes()
    settings = made(tmp_path, Edited(), key=key)
    outcome = redone(settings, first.partition)
    assert isinstance(outcome, Done), outcome
    second = receipt_of(settings, first.partition)
    assert outcome.receipt == second
    assert outcome.processed is not None
    assert ".redo-" in second.key
    assert second.key.endswith(".tar.zst") == first.key.endswith(".tar.zst")
    assert stored_at(settings, first).read_bytes() == first_bytes
    assert content_of(stored_at(settings, second)) == {**FILES, **edited()}
    assert (second.messages, second.results, second.originals) == (len(FILES), len(FILES), True)
    third = redone(settings, first.partition)
    assert isinstance(third, Done)
    keys = {first.key, second.key, receipt_of(settings, first.partition).key}
    assert len(keys) == 3
    assert {
        p.relative_to(objects(settings)).as_posix()
        for p in objects(settings).rglob("*")
        if p.is_file()
    } == keys
    assert settings.layout.redos() == settings.layout.processed_numbers() == []
    assert list(settings.layout.redo.iterdir()) == []


def test_a_redone_archive_is_found_cataloged_repacked_and_redone(tmp_path: Path) -> None:
    before = made(tmp_path)
    first = shipped(before)
    settings = made(tmp_path, Edited())
    assert isinstance(redone(settings, first.partition), Done)
    second = receipt_of(settings, first.partition)
    for _ in range(2):
        with Catalog.to_read(settings.layout.catalog) as catalog:
            archives = {one.key: one.partition for one in catalog.archives().values()}
        assert archives == {first.key: first.partition, second.key: first.partition}
        settings.layout.catalog.unlink()
        assert rebuild(settings, settings.store.open()).added == 2
    moved = made(tmp_path, Edited(), key="again/{archive}")
    (again,) = repack_partitions(
        [first.partition],
        moved,
        moved.store.open(),
        lambda _: Archive.open(stored_at(settings, second)),
    )
    assert isinstance(again, Done), again
    assert receipt_of(moved, first.partition).sha256 == second.sha256


class WithHeaders(Script):
    """A processor whose results are what it knows of an item."""

    def processor(self) -> Processor:
        return _WithHeaders(self)


class _WithHeaders(Scripted):
    async def process(self, items: Sequence[Item]) -> Sequence[Sequence[Result] | BadItem]:
        return [[Result(json.dumps(dict(one.headers)).encode(), "", "text/x")] for one in items]


def test_the_headers_of_messages_and_results_go_the_whole_way(tmp_path: Path) -> None:
    settings = made(tmp_path, WithHeaders())
    kept = {"a.json": {"cmd": "thumb/64", "x": "消息"}, "b.json": {}}
    with SlotOwner(settings, 0, keeps_headers=True) as owner:
        for name, headers in kept.items():
            owner.add(name, name.encode(), to_text(headers))
        slot = owner.seal("request")
    assert slot is not None
    partition = slot.seal.partition
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done), outcome
    assert isinstance(redone(settings, partition), Done)
    moved = made(tmp_path, WithHeaders(), key="again/{archive}")
    second = receipt_of(settings, partition)
    opened = Archive.open(stored_at(settings, second))
    assert list(repack_partitions([partition], moved, moved.store.open(), lambda _: opened))
    third = receipt_of(moved, partition)
    assert third.sha256 == second.sha256
    for receipt in (outcome.receipt, second, third):
        assert receipt is not None
        with Archive.open(stored_at(settings, receipt)) as archive:
            members = {member.name: from_text(member.headers) for member in archive.members}
            assert members == {
                **kept,
                "results/a.json": {"content-type": "text/x"},
                "results/b.json": {"content-type": "text/x"},
            }
            assert json.loads(archive.read("results/a.json")) == kept["a.json"]
            assert archive.verify().damages == []


@pytest.mark.parametrize("packer", [None, pack_by_hand])
def test_results_alone_cannot_be_processed_again(tmp_path: Path, packer: Any) -> None:
    settings = made(tmp_path, Script(keep="results"), packer=packer)
    first = shipped(settings)
    outcome = redone(settings, first.partition)
    assert isinstance(outcome, Failed)
    assert outcome.permanent
    assert "holds only results" in outcome.error
    assert receipt_of(settings, first.partition) == first


def test_what_is_not_stored_or_has_no_processor_is_refused(tmp_path: Path) -> None:
    settings = made(tmp_path)
    slot = sealed(settings, FILES)
    outcome = redone(settings, slot.seal.partition)
    assert isinstance(outcome, Failed)
    assert "has no stored archive" in outcome.error
    assert slot.directory.is_dir()
    plain = pipeline(tmp_path)
    outcome = redone(plain, slot.seal.partition)
    assert isinstance(outcome, Failed)
    assert "has no processor" in outcome.error


def test_an_archive_from_before_the_processor_can_be_processed(tmp_path: Path) -> None:
    first = shipped(pipeline(tmp_path))
    settings = made(tmp_path, Edited())
    assert isinstance(redone(settings, first.partition), Done)
    second = receipt_of(settings, first.partition)
    assert content_of(stored_at(settings, second)) == {**FILES, **edited()}


def test_a_damaged_archive_is_not_processed(tmp_path: Path) -> None:
    settings = made(tmp_path)
    first = shipped(settings)
    path = stored_at(settings, first)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    outcome = redone(settings, first.partition)
    assert isinstance(outcome, Failed)
    assert outcome.permanent
    assert list(settings.layout.redo.iterdir()) == []
    assert receipt_of(settings, first.partition) == first


def test_a_redo_that_was_interrupted_continues_under_the_same_key(tmp_path: Path) -> None:
    settings = made(tmp_path, Script(), commit_messages=3, prefetch_count=10)
    first = shipped(settings)
    with pytest.raises(KeyboardInterrupt):
        stopped_at(CrashPoint.OUTCOMES_KEPT, settings, first.partition)
    assert settings.layout.redos() == [first.partition]
    (seal,) = settings.layout.redo.rglob("sealed/*/*/seal.json")
    key = json.loads(seal.read_bytes())["object_key"]
    assert recovery.look(settings).redone == ()
    assert isinstance(redone(settings, first.partition), Done)
    assert receipt_of(settings, first.partition).key == key
    assert settings.layout.redos() == []


def stopped_at(step: CrashPoint, settings: Pipeline, partition: str) -> None:
    """Interrupt a redo after this step."""

    def stop(reached: CrashPoint) -> None:
        if reached == step:
            raise KeyboardInterrupt

    observe(stop)
    try:
        redone(settings, partition)
    finally:
        observe(None)


@pytest.mark.parametrize("step", [CrashPoint.PROCESSED, CrashPoint.ARCHIVE_NOTED])
def test_results_of_code_that_has_changed_since_are_not_stored(
    tmp_path: Path, step: CrashPoint
) -> None:
    settings = made(tmp_path)
    first = shipped(settings)
    with pytest.raises(KeyboardInterrupt):
        stopped_at(step, settings, first.partition)
    changed = made(tmp_path, Edited())
    assert isinstance(redone(changed, first.partition), Done)
    second = receipt_of(changed, first.partition)
    assert content_of(stored_at(changed, second)) == {**FILES, **edited()}


@pytest.mark.parametrize("damaged", ["segment.tar", "seal.json"])
def test_a_damaged_copy_is_fetched_again(tmp_path: Path, damaged: str) -> None:
    settings = made(tmp_path)
    first = shipped(settings)
    with pytest.raises(KeyboardInterrupt):
        stopped_at(CrashPoint.REDO_BEGUN, settings, first.partition)
    (path,) = settings.layout.redo.rglob(f"sealed/*/*/{damaged}")
    content = bytearray(path.read_bytes())
    content[600 if damaged == "segment.tar" else 0] ^= 1
    path.write_bytes(content)
    outcomes = [redone(settings, first.partition)]
    if damaged == "segment.tar":
        assert isinstance(outcomes[0], Failed)
        outcomes.append(redone(settings, first.partition))
    assert isinstance(outcomes[-1], Done), outcomes
    assert (
        content_of(stored_at(settings, receipt_of(settings, first.partition))).keys()
        >= FILES.keys()
    )


def test_a_stored_redo_whose_folder_is_left_is_finished_by_recovery_or_the_next_attempt(
    tmp_path: Path,
) -> None:
    settings = made(tmp_path)
    first = shipped(settings)
    for finish in ("recovery", "attempt"):
        with pytest.raises(KeyboardInterrupt):
            stopped_at(CrashPoint.RECEIPT_KEPT, settings, first.partition)
        stored = receipt_of(settings, first.partition)
        found = recovery.look(settings)
        assert found.redone == (first.partition,)
        if finish == "recovery":
            recovery.apply(recovery.plan(found, settings, busy=(), now=0), settings)
        else:
            outcome = redone(settings, first.partition)
            assert isinstance(outcome, Done)
            assert outcome.receipt == stored
        assert settings.layout.redos() == []
        assert receipt_of(settings, first.partition) == stored


def test_an_item_that_is_bad_now_becomes_a_dead_letter_of_the_redo(tmp_path: Path) -> None:
    settings = made(tmp_path)
    first = shipped(settings, {"a": script(), "b": script(times=50)})
    smaller = made(tmp_path, Script(max_result_bytes=20))
    assert isinstance(redone(smaller, first.partition), Done)
    (letter,) = [letter for _, letter in numbered_dead_letters(smaller.layout)]
    assert letter.item is not None
    assert (letter.item.partition, letter.item.name) == (first.partition, "b")
    assert receipt_of(smaller, first.partition).results == 1


def test_letters_of_a_processing_are_settled_by_another_that_is_stored(tmp_path: Path) -> None:
    settings = made(tmp_path)
    first = shipped(settings, {"a": script(), "b": script(bad="no")})
    (letter,) = numbered_dead_letters(settings.layout)
    assert settled([letter], settings) == {}
    other = made(tmp_path, Edited())
    assert isinstance(redone(other, first.partition), Done)
    second = receipt_of(settings, first.partition)
    assert second.address in settled([letter], other)[letter[0]]
    (again,) = repack_partitions(
        [first.partition],
        made(tmp_path, Edited(), key="again/{archive}"),
        settings.store.open(),
        lambda _: Archive.open(stored_at(settings, second)),
    )
    assert isinstance(again, Done), again
    assert settled([letter], other).keys() == {letter[0]}


def test_letters_of_a_processing_that_began_again_are_settled(tmp_path: Path) -> None:
    settings = made(tmp_path, Script(concurrency=1), commit_messages=1)
    slot = sealed(settings, {"a": script(bad="no"), "b": script(), "c": script()})

    def stop(*_: object) -> None:
        if list(numbered_dead_letters(settings.layout)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(process_partitions([slot.seal.partition], settings, stop))
    letters = list(numbered_dead_letters(settings.layout))
    assert len(letters) == 1
    assert settled(letters, settings) == {}
    other = made(tmp_path, Edited())
    list(process_partitions([slot.seal.partition], other))
    assert "processed again" in settled(letters, other)[letters[0][0]]
    list(ship(other, other.store.open()))
    assert settled(letters, other).keys() == {letters[0][0]}


def test_while_the_processor_works_for_nobody_what_is_stored_stays(tmp_path: Path) -> None:
    first = shipped(made(tmp_path))
    switch = tmp_path / "on"
    settings = made(tmp_path, Script(switch=switch, max_retries=1))
    outcome = redone(settings, first.partition)
    assert isinstance(outcome, Failed)
    assert outcome.unavailable
    assert find_processor_trouble(settings.layout) is not None
    assert list(numbered_dead_letters(settings.layout)) == []
    assert receipt_of(settings, first.partition) == first
    switch.touch()
    told: list[tuple[str, int, int, int]] = []
    outcome = redone(settings, first.partition, lambda *figures: told.append(figures))
    assert isinstance(outcome, Done), outcome
    assert told[-1] == (first.partition, len(FILES), len(FILES), 0)
    assert find_processor_trouble(settings.layout) is None


class Uploads:
    """A store with an unfinished upload."""

    def __init__(self, key: str) -> None:
        self.upload = UnfinishedUpload(key, "id", datetime(2026, 1, 1, tzinfo=timezone.utc))
        self.aborted: list[str] = []

    def unfinished(self) -> list[UnfinishedUpload]:
        return [self.upload]

    def abort(self, upload: UnfinishedUpload) -> None:
        self.aborted.append(upload.key)


def test_the_unfinished_upload_of_a_redo_is_aborted_only_when_nobody_continues_it(
    tmp_path: Path,
) -> None:
    settings = made(tmp_path)
    first = shipped(settings)
    with pytest.raises(KeyboardInterrupt):
        stopped_at(CrashPoint.ARCHIVE_NOTED, settings, first.partition)
    store: Any = Uploads(f"docs/{first.partition}.redo-20260101T000000000Z.tar.zst")
    later = datetime.now(tz=timezone.utc) + timedelta(hours=2)
    assert recovery.abort_unneeded_uploads(settings, store, later) == 0
    assert isinstance(redone(settings, first.partition), Done)
    assert recovery.abort_unneeded_uploads(settings, store, later) == 1


def test_results_that_are_stored_can_be_taken_over(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    settings = made(tmp_path, ScriptWithFolders(journal=journal))
    files = {"a": script(files=["x", "y"], missing=["z"]), "b": script(files=["w"])}
    before = shipped(settings, files)
    later["a"] = script(files=["x", "y", "z"])
    try:
        changed = made(tmp_path, ScriptWithFolders(journal=journal, edition=2, takes_over=True))
        outcome = redone(changed, before.partition)
    finally:
        later.clear()
    assert isinstance(outcome, Done), outcome
    assert outcome.receipt is not None
    found = content_of(stored_at(settings, outcome.receipt))
    wanted = {"x": b"a x ", "y": b"a y ", "z": b"a z ", "w": b"b w "}
    assert {name.removeprefix("results/"): found[name] for name in found if "/" in name} == wanted
    lines = [one for one in journal.read_text().splitlines() if one.startswith(("made", "took"))]
    assert sorted(lines) == sorted(
        [*("made x", "made y", "made w"), *("took x", "took y", "took w"), "made z"]
    )
    with Archive.open(stored_at(settings, outcome.receipt)) as archive:
        assert not archive.failures()
