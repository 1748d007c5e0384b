"""Archives of processed slots: originals and results, told apart by everything that reads them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from fuploader_dagster.archives.ranges import StoredArchive
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.catalog.catalog import Catalog
from fuploader_dagster.catalog.rebuild import rebuild
from fuploader_dagster.contracts.processor import Processor
from fuploader_dagster.delivery.archive_members import clashes
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.pack import Packed, find_packed, pack
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.repack import repack, repack_partitions
from fuploader_dagster.delivery.scrub import examine
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.errors import ConfigError, DamagedArchive, DamagedResults, PermanentError
from fuploader_dagster.intake.disk_space import Unshipped
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.processed import find_processed
from fuploader_dagster.slots.receipts import Receipt, find_receipt
from fuploader_dagster.slots.sealing import SealedSlot
from tests.lives import pack_by_hand
from tests.processors_for_tests import Script, script
from tests.settings import archived_files, archives_in, pipeline, sealed
from tests.unit.archives.archives import segment

Keep = Literal["both", "results", "originals"]
FILES = {
    "one.json": script(times=3),
    "none.json": script(results=0),
    "two.json": script(results=2),
    "消息.json": script(),
    "large.bin": script(times=150_000),
}
RESULTS = {
    "results/one.json": b"one.json-0" * 3,
    "results/two.json": b"two.json-0",
    "results/two~2.json": b"two.json-1",
    "results/消息.json": "消息.json-0".encode(),
    "results/large.bin": b"large.bin-0" * 150_000,
}
HELD: dict[Keep, dict[str, bytes]] = {
    "both": {**FILES, **RESULTS},
    "results": RESULTS,
    "originals": FILES,
}


def made(folder: Path, keep: Keep = "both", **values: Any) -> Pipeline:
    return pipeline(folder, process=Script(keep=keep), **values)


def processed(settings: Pipeline, files: dict[str, bytes]) -> SealedSlot:
    slot = sealed(settings, files)
    (outcome,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(outcome, Done), outcome
    return slot


def shipped(settings: Pipeline, files: dict[str, bytes]) -> Receipt:
    sealed(settings, files)
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done), outcome
    assert outcome.receipt is not None
    return outcome.receipt


def stored_at(settings: Pipeline, receipt: Receipt) -> Path:
    return settings.storage_root.parent / "objects" / receipt.key


@pytest.mark.parametrize("slot_format", ["segment", "files"])
@pytest.mark.parametrize("keep", HELD)
def test_an_archive_holds_originals_then_results_or_one_of_the_two(
    tmp_path: Path, keep: Keep, slot_format: str
) -> None:
    settings = made(tmp_path, keep, slot_format=slot_format)
    packed = pack(processed(settings, FILES), settings)
    wanted = HELD[keep]
    path = packed.file(settings.layout).path
    tar = subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True).stdout
    for tool in ("tar", "bsdtar"):
        listed = subprocess.run([tool, "-tf", "-"], input=tar, capture_output=True, check=True)
        assert len(listed.stdout.splitlines()) == len(wanted)
        out = tmp_path / tool
        out.mkdir()
        subprocess.run([tool, "-xf", "-", "-C", str(out)], input=tar, check=True)
        assert {p.relative_to(out).as_posix(): p.read_bytes() for p in files_in(out)} == wanted
    with Archive.open(path) as archive:
        assert [member.name for member in archive.members] == list(wanted)
        assert archive.results() == (set() if keep == "originals" else set(RESULTS))
        assert archive.manifest is not None
        results = 0 if keep == "originals" else len(RESULTS)
        assert archive.manifest.metadata == {"results": str(results)}
        assert archive.verify().damages == []
        assert {name: archive.read(name) for name in wanted} == wanted
    assert (packed.messages, packed.results, packed.originals) == (
        len(FILES),
        results,
        keep != "results",
    )
    assert packed.members == len(wanted)
    assert packed.payload_bytes == sum(map(len, wanted.values()))


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_pipeline_without_a_processor_writes_the_same_bytes_as_ever(tmp_path: Path) -> None:
    plain = pipeline(tmp_path)
    packed = pack(sealed(plain, FILES), plain)
    assert (packed.results, packed.originals, packed.members) == (0, True, len(FILES))
    with Archive.open(packed.file(plain.layout).path) as archive:
        assert archive.manifest is not None
        assert archive.manifest.metadata == {}


def test_an_archive_may_have_no_members(tmp_path: Path) -> None:
    """Only results are kept, and nothing came out."""
    settings = made(tmp_path, "results")
    receipt = shipped(settings, {"a": script(results=0), "b": script(bad="no")})
    assert (receipt.messages, receipt.results, receipt.members) == (2, 0, 0)
    path = stored_at(settings, receipt)
    tar = subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True).stdout
    for tool in ("tar", "bsdtar"):
        assert (
            subprocess.run([tool, "-tf", "-"], input=tar, capture_output=True, check=True).stdout
            == b""
        )
    with Archive.open(path) as archive:
        assert list(archive.members) == archive.names() == []
        assert archive.results() == set()
        assert archive.verify().damages == []
        assert archive.restore(tmp_path / "out").restored == 0
    finding = examine(
        receipt, lambda _: StoredArchive(settings.store.open(), receipt.key), members=3
    )
    assert finding.problems == []
    again = repack(receipt, lambda _: Archive.open(path), settings)
    assert again.sha256 == receipt.sha256


def test_of_a_damaged_manifest_nothing_is_told_apart_and_nothing_fetched(tmp_path: Path) -> None:
    settings = made(tmp_path)
    receipt = shipped(settings, FILES)
    path = stored_at(settings, receipt)
    content = bytearray(path.read_bytes())
    with Archive.open(path) as archive:
        assert archive.manifest is not None
        content[archive.manifest.offset - 5] ^= 1  # in the last page of names
    path.write_bytes(content)
    with Archive.open(path) as archive:
        assert archive.manifest is not None
        assert archive.results() == set()
        assert archive.manifest is None
    with pytest.raises(DamagedArchive):
        repack(receipt, lambda _: Archive.open(path), settings)


def test_a_manifest_with_more_results_than_members_is_refused(tmp_path: Path) -> None:
    """Or a replay would take messages for results."""
    for results in ("6", "-1", "", "x", "1" * 20):
        with segment(tmp_path / "segment", FILES) as source:
            write_archive(tmp_path / "a.tar.zst", source, metadata={"results": results})
        with Archive.open(tmp_path / "a.tar.zst") as archive:
            (damage, *_) = archive.verify().damages
        assert f"'{results}' results of 5 members" in damage.what


def test_old_receipts_and_notes_are_still_read(tmp_path: Path) -> None:
    old = {
        "partition": "p",
        "size_bytes": 1,
        "sha256": "0",
        "messages": 5,
        "payload_bytes": 9,
    }
    receipt = msgspec.json.decode(
        json.dumps({**old, "address": "a", "key": "k", "stored_at": "t"}), type=Receipt
    )
    note = msgspec.json.decode(json.dumps({**old, "archive": "a"}), type=Packed)
    assert (receipt.members, receipt.results, receipt.originals) == (5, 0, True)
    assert (note.members, note.results, note.originals) == (5, 0, True)


@pytest.mark.parametrize("keep", ["both", "results"])
def test_damaged_results_are_put_aside_and_made_again(tmp_path: Path, keep: Keep) -> None:
    settings = made(tmp_path, keep)
    slot = processed(settings, FILES)
    done = find_processed(slot, settings.layout)
    assert done is not None
    segment = bytearray(done.segment.read_bytes())
    segment[600] ^= 1
    done.segment.write_bytes(segment)
    with pytest.raises(DamagedResults, match="moved to") as caught:
        pack(slot, settings)
    assert "'results/one.json'" in str(caught.value)
    assert [path.name for path in slot.directory.parent.iterdir()] == [slot.directory.name]
    (aside,) = settings.layout.set_aside.iterdir()
    assert (aside / "segment.tar").read_bytes() == bytes(segment)
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done)
    assert archived_files(tmp_path / "objects") == {n: [c] for n, c in HELD[keep].items()}


@pytest.mark.parametrize("lost", ["segment.tar", "index"])
def test_results_that_are_gone_are_made_again(tmp_path: Path, lost: str) -> None:
    settings = made(tmp_path)
    slot = processed(settings, FILES)
    (settings.layout.processed(0, slot.seal.number) / lost).unlink()
    with pytest.raises(DamagedResults, match="is missing, or is no file"):
        pack(slot, settings)
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done)


def test_an_archive_from_before_there_was_a_processor_is_stored_as_it_is(tmp_path: Path) -> None:
    """One that was taken over from FUploader has no slot data that could be processed."""
    plain = pipeline(tmp_path)
    slot = sealed(plain, FILES)
    packed = pack(slot, plain)
    slot.segment.unlink()
    settings = made(tmp_path)
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done), outcome
    assert outcome.receipt is not None
    assert (outcome.receipt.sha256, outcome.receipt.results) == (packed.sha256, 0)
    assert settings.layout.sealed_numbers() == settings.layout.processed_numbers() == []


def test_an_unprocessed_slot_is_not_packed(tmp_path: Path) -> None:
    settings = made(tmp_path)
    with pytest.raises(PermanentError, match="not processed yet"):
        pack(sealed(settings, FILES), settings)


def test_names_that_would_hide_others_get_numbers() -> None:
    """Only directories of other programs have such originals: their names may hold a slash."""
    assert clashes(["a", "b"], ["results/a", "results/b"]) == ({}, {})
    assert clashes(["results"], ["results/a"]) == ({0: "results~2"}, {})
    assert clashes(["results/a.json", "x"], ["results/x", "results/a.json"]) == (
        {},
        {1: "results/a~2.json"},
    )
    assert clashes(["results/a~2.json", "results/a.json"], ["results/a.json"]) == (
        {},
        {0: "results/a~3.json"},
    )
    assert clashes(["results/a/b", "results~2"], ["results/a"]) == ({}, {0: "results/a~2"})
    assert clashes(["results/x", "results~2", "results"], ["results/x/y"]) == (
        {0: "results/x~2", 2: "results~3"},
        {},
    )


@pytest.mark.parametrize("packer", [None, pack_by_hand])
def test_of_clashing_names_nothing_is_lost(tmp_path: Path, packer: Any) -> None:
    settings = made(tmp_path, packer=packer)
    files = {"results": script(), "a" * 120: script(times=99), "b": script(results=0)}
    receipt = shipped(settings, files)
    out = tmp_path / "out"
    subprocess.run(
        [
            "tar",
            "--zstd",
            "-xf",
            str(stored_at(settings, receipt)),
            "-C",
            str(tmp_path),
            "--one-top-level=out",
        ],
        check=True,
    )
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in files_in(out)}
    assert found == {
        "results~2": script(),
        "a" * 120: script(times=99),
        "b": script(results=0),
        "results/results": b"results-0",
        "results/" + "a" * 120: (b"a" * 120 + b"-0") * 99,
    }
    with Catalog.to_read(settings.layout.catalog) as catalog:
        assert sorted(hit.name for hit in catalog.find("*")) == sorted(found)


@pytest.mark.parametrize("keep", HELD)
@pytest.mark.parametrize("packer", [None, pack_by_hand])
def test_repacking_keeps_originals_results_and_what_tells_them_apart(
    tmp_path: Path, keep: Keep, packer: Any
) -> None:
    first = shipped(made(tmp_path, keep, packer=packer), FILES)
    settings = made(tmp_path, keep, key="again/{archive}")
    (outcome,) = repack_partitions(
        [first.partition],
        settings,
        settings.store.open(),
        lambda _: Archive.open(stored_at(settings, first)),
    )
    assert isinstance(outcome, Done), outcome
    again = find_receipt(settings.layout, first.partition)
    assert again is not None
    assert again.key.startswith("again/")
    assert msgspec.structs.replace(
        first, key="", address="", sha256="", size_bytes=0, stored_at=""
    ) == msgspec.structs.replace(again, key="", address="", sha256="", size_bytes=0, stored_at="")
    assert (again.sha256 == first.sha256) == (packer is None)
    with Archive.open(stored_at(settings, again)) as archive:
        assert {name: archive.read(name) for name in archive.names()} == HELD[keep]
        assert archive.results() == set(HELD[keep]) & set(RESULTS)
        assert archive.verify().damages == []


@pytest.mark.parametrize("keep", HELD)
def test_scrub_and_catalog_count_both(tmp_path: Path, keep: Keep) -> None:
    settings = made(tmp_path, keep)
    receipt = shipped(settings, FILES)
    store = settings.store.open()
    finding = examine(receipt, lambda _: StoredArchive(store, receipt.key), members=99)
    assert (finding.problems, finding.members_read) == ([], len(HELD[keep]))
    with Catalog.to_read(settings.layout.catalog) as catalog:
        before = sorted(hit.name for hit in catalog.find("*"))
    settings.layout.catalog.unlink()
    assert rebuild(settings, store).added == 1
    with Catalog.to_read(settings.layout.catalog) as catalog:
        assert before == sorted(hit.name for hit in catalog.find("*")) == sorted(HELD[keep])


class Removed(Script):
    """A processor that cannot be had any more."""

    def processor(self) -> Processor:
        raise ConfigError("the module is gone")

    def version(self) -> str:
        raise ConfigError("the module is gone")


def test_what_is_processed_is_shipped_without_the_processor(tmp_path: Path) -> None:
    slot = processed(made(tmp_path), FILES)
    settings = pipeline(tmp_path, process=Removed())
    waiting = sealed(settings, {"new.json": script()})
    outcomes = {one.partition: one for one in ship(settings, settings.store.open())}
    assert isinstance(outcomes[slot.seal.partition], Done)
    assert archived_files(tmp_path / "objects") == {n: [c] for n, c in HELD["both"].items()}
    failed = outcomes[waiting.seal.partition]
    assert isinstance(failed, Failed)
    assert "the module is gone" in failed.error


def test_what_was_processed_counts_as_not_shipped_and_goes_with_the_slot(tmp_path: Path) -> None:
    settings = made(tmp_path)
    slot = sealed(settings, FILES)
    before = Unshipped(settings.layout).bytes()
    assert isinstance(next(process_partitions([slot.seal.partition], settings)), Done)
    directory = settings.layout.processed(0, slot.seal.number)
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert Unshipped(settings.layout).bytes() == before + size
    (directory / "notes of a person").write_text("keep me")
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done)
    assert settings.layout.processed_numbers() == settings.layout.sealed_numbers() == []
    assert Unshipped(settings.layout).bytes() == 0
    (kept,) = settings.layout.set_aside.iterdir()
    assert kept.read_text() == "keep me"
    assert find_packed(settings.layout, slot.seal.partition) is None


def test_what_was_processed_of_a_damaged_slot_is_put_aside_with_it(tmp_path: Path) -> None:
    settings = made(tmp_path)
    slot = processed(settings, FILES)
    with slot.segment.open("r+b") as segment:
        segment.seek(600)
        segment.write(b"\xff")
    (outcome, again) = ship(settings, settings.store.open())
    assert isinstance(outcome, Failed)
    assert isinstance(again, Done)
    assert again.receipt is not None
    assert again.receipt.messages == len(FILES) - 1
    assert settings.layout.processed_numbers() == settings.layout.sealed_numbers() == []
    aside = sorted(path.name for path in settings.layout.set_aside.iterdir())
    assert len(aside) == 2
    assert aside[1] == f"{aside[0]}-processed"
    assert len(archives_in(tmp_path / "objects")) == 1
