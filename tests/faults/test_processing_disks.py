"""Processing on a disk that fills, on slots that rot, and beside another run of the same slot."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.processed import PROCESSING_NAME, find_processed
from tests.processors_for_tests import Script, ScriptWithFolders, script
from tests.servers.small_disks import MIB, enlarge, small_disk
from tests.settings import archived_files, pipeline, sealed


def test_a_disk_that_fills_costs_no_item_and_the_work_goes_on_where_it_was(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    process = Script(journal=journal, concurrency=4)
    with small_disk(tmp_path / "disk", size_bytes=4 * MIB) as disk:
        settings = pipeline(
            disk,
            process=process,
            commit_messages=10,
            prefetch_count=20,
            store=pipeline(tmp_path).store,
        )
        files = {f"f{n:03d}": script(times=5000) for n in range(200)}
        slot = sealed(settings, files)
        (outcome,) = process_partitions([slot.seal.partition], settings)
        assert isinstance(outcome, Failed)
        assert "no space left" in outcome.error
        assert not outcome.permanent
        before = len(journal.read_text().splitlines())
        assert 10 < before < 200
        enlarge(disk, size_bytes=32 * MIB)
        (outcome,) = process_partitions([slot.seal.partition], settings)
        assert isinstance(outcome, Done), outcome
        found = find_processed(slot, settings.layout)
        assert found is not None
        assert [entry.name for entry in found.entries()] == [f"results/{name}" for name in files]
        assert len(journal.read_text().splitlines()) <= 200 + 16 + 10 + 10
        assert not list(numbered_dead_letters(settings.layout))


def test_a_disk_that_fills_while_files_are_made_blames_no_item(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    process = ScriptWithFolders(journal=journal, concurrency=4)
    with small_disk(tmp_path / "disk", size_bytes=6 * MIB) as disk:
        settings = pipeline(
            disk,
            process=process,
            commit_messages=5,
            prefetch_count=10,
            store=pipeline(tmp_path).store,
        )
        files = {f"f{n:02d}": script(files=[f"r{n:02d}"], times=20_000) for n in range(60)}
        slot = sealed(settings, files)
        (outcome,) = process_partitions([slot.seal.partition], settings)
        assert isinstance(outcome, Failed)
        assert "no space left" in outcome.error
        assert not outcome.permanent
        made = journal.read_text().count("made")
        assert 10 < made < 60
        enlarge(disk, size_bytes=64 * MIB)
        assert all(isinstance(one, Done) for one in ship(settings, settings.store.open()))
        assert not list(numbered_dead_letters(settings.layout))
        wanted = {f"results/r{n:02d}": [f"f{n:02d} r{n:02d} ".encode() * 20_000] for n in range(60)}
        found = archived_files(tmp_path / "objects")
        assert {name: found[name] for name in wanted} == wanted
        # Made again was only what was not whole: of items in work, and of those that follow them.
        assert journal.read_text().count("made") <= 60 + 16


@pytest.mark.parametrize("name", ["files/00000001", "files", "index", "outcomes", PROCESSING_NAME])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "a folder", "a link", "a pipe"])
def test_files_that_rot_are_made_again_and_no_message_is_lost(
    name: str, how: str, tmp_path: Path
) -> None:
    if (name, how) == ("index", "a link"):
        return  # for a person: it may be somebody's file
    settings = pipeline(tmp_path, process=ScriptWithFolders())
    files = {f"f{n}": script(files=[f"r{n}"]) for n in range(4)}
    slot = sealed(settings, files)
    interrupted(settings, slot.seal.partition, items=30)
    path = settings.layout.processed(0, 1) / name
    if path.is_dir():
        path.rename(tmp_path / "away")
        path.write_bytes(b"file")
    spoil(path, how)
    for _ in range(3):  # what is found damaged is made again by the next attempt
        outcomes = list(ship(settings, settings.store.open()))
        if all(isinstance(one, Done) for one in outcomes):
            break
    assert all(isinstance(one, Done) for one in outcomes), outcomes
    wanted = {name: [content] for name, content in files.items()}
    wanted |= {f"results/r{n}": [f"f{n} r{n} ".encode()] for n in range(4)}
    assert archived_files(tmp_path / "objects") == wanted


@pytest.mark.parametrize("name", ["segment.tar", "index", "outcomes", PROCESSING_NAME, "seal.json"])
@pytest.mark.parametrize("finished", [False, True], ids=["in work", "finished"])
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "gone", "a folder"])
def test_results_that_rot_are_made_again_and_no_message_is_lost(
    name: str, finished: bool, how: str, tmp_path: Path
) -> None:
    settings = pipeline(
        tmp_path, process=Script(concurrency=1), commit_messages=5, prefetch_count=10
    )
    files = {f"f{n:02d}": script(**({"bad": "no"} if n == 3 else {})) for n in range(30)}
    slot = sealed(settings, files)
    interrupted(settings, slot.seal.partition, items=30 if finished else 10)
    if name == "seal.json" and not finished:
        return
    spoil(settings.layout.processed(0, 1) / name, how)
    for _ in range(3):  # what is found damaged is made again by the next attempt
        outcomes = list(ship(settings, settings.store.open()))
        if all(isinstance(one, Done) for one in outcomes):
            break
    assert all(isinstance(one, Done) for one in outcomes), outcomes
    wanted = {name: [content] for name, content in files.items()}
    wanted |= {f"results/{n}": [f"{n}-0".encode()] for n in files if n != "f03"}
    assert archived_files(tmp_path / "objects") == wanted
    assert {letter.body for _, letter in numbered_dead_letters(settings.layout)} == {files["f03"]}


def interrupted(settings: Pipeline, partition: str, *, items: int) -> None:
    def stop(_partition: str, done: int, _all: int, _failed: int) -> None:
        if done >= items:
            raise KeyboardInterrupt

    if items == 30:
        list(process_partitions([partition], settings))
        return
    with pytest.raises(KeyboardInterrupt):
        list(process_partitions([partition], settings, stop))


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif how == "cut":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "a folder":
        path.mkdir()
    elif how == "a link":
        path.symlink_to("/etc/hostname")
    elif how == "a pipe":
        os.mkfifo(path)


def test_two_runs_of_one_partition_process_each_item_once(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    settings = pipeline(tmp_path, process=Script(journal=journal))
    slot = sealed(settings, {f"f{n:02d}": script(seconds=0.01) for n in range(40)})
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=process_all, args=(settings, slot.seal.partition)) for _ in "ab"]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    names = [line.split()[0] for line in journal.read_text().splitlines()]
    assert sorted(names) == sorted(set(names))
    assert len(names) == 40


def process_all(settings: Pipeline, partition: str) -> None:
    (outcome,) = process_partitions([partition], settings)
    assert isinstance(outcome, Done), outcome
