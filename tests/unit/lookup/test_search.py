"""Where a message is: each state is held open and asked for."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.catalog.catalog import Catalog, CatalogedArchive
from fuploader_dagster.catalog.rebuild import remove_catalog
from fuploader_dagster.contracts.source import Message
from fuploader_dagster.dead_letters.letters import DeadLetterBox, note_requeued
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.redo import redo_partitions
from fuploader_dagster.delivery.rows import store_partitions
from fuploader_dagster.delivery.ship import pack_partitions, ship
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.errors import BadMessage, ConfigError
from fuploader_dagster.lookup.found import AtSink, Copy, Letter, as_builtins
from fuploader_dagster.lookup.search import Search
from fuploader_dagster.lookup.wanted import Wanted
from fuploader_dagster.processing.envelope import decode_raw, encode
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.index import (
    PLAIN,
    WITH_HEADERS,
    IndexEntry,
    record,
    record_with_headers,
    whole_index,
)
from fuploader_dagster.slots.numbered_names import numbered_name
from fuploader_dagster.slots.receipts import find_receipt
from fuploader_dagster.slots.sealing import sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner
from tests.processors_for_tests import Script, script
from tests.settings import pipeline, sealed
from tests.sinks_for_tests import RowsFile, two_rows

HOSTILE = [
    "..",
    "../../etc/passwd",
    "%2f..%2f",
    "",
    "\0",
    "a\0b",
    "消息",
    "\ud800",
    "\udc80",
    "x" * 4096,
]


def copies(settings: Pipeline, name: str, **more: Any) -> list[Copy]:
    search = Search(settings, Wanted(name), **more)
    search.letters()
    return list(search.copies())


def one(settings: Pipeline, name: str) -> Copy:
    (copy,) = copies(settings, name)
    return copy


def letters(settings: Pipeline, name: str) -> list[Letter]:
    return Search(settings, Wanted(name)).letters()


def shipped(settings: Pipeline) -> None:
    for outcome in ship(settings, settings.store.open()):
        assert isinstance(outcome, Done), outcome


def tree(folder: Path) -> dict[str, bytes]:
    """All files, without those that SQLite makes for any reader of the catalog."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path): path.read_bytes() for path in files if not path.name.endswith(("-shm", "-wal"))
    }


def keep_letter(
    settings: Pipeline, body: bytes, reason: str = "why", message_id: str | None = None
) -> None:
    box = DeadLetterBox(settings.layout, 0)
    message = Message(body, 1, False, message_id)
    box.keep([box.letter(message, BadMessage(reason), lambda _: {})])


def test_a_message_is_found_on_each_step_of_its_way(tmp_path: Path) -> None:
    rows = RowsFile(path=tmp_path / "rows.sqlite", switch=tmp_path / "on", rows=two_rows)
    settings = pipeline(tmp_path, process=Script(), sinks={"rows": rows})
    assert copies(settings, "7.json") == []
    with SlotOwner(settings, 3) as writer:
        writer.add("7.json", script(results=2))
        assert copies(settings, "7.json") == []  # it is not committed, so not acknowledged
        writer.commit()
        active = one(settings, "7.json")
        assert (active.state, active.slot, active.directory, active.partition) == (
            "active",
            3,
            1,
            None,
        )
        assert active.size_bytes == len(script(results=2))
        slot = writer.seal("request")
    assert slot is not None
    partition = slot.seal.partition
    found = one(settings, "7.json")
    assert (found.state, found.slot, found.partition) == ("sealed", 3, partition)
    assert (found.results, found.sinks) == (None, {"rows": AtSink(state="waiting")})
    list(process_partitions([partition], settings))
    found, *results = copies(settings, "7.json")
    assert (found.state, found.results) == ("processed", 2)
    assert [one.name for one in results] == ["results/7.json", "results/7~2.json"]
    list(pack_partitions([partition], settings))
    assert {one.state for one in copies(settings, "7.json")} == {"packed"}
    list(ship(settings, settings.store.open()))  # the sink is away
    receipt = find_receipt(settings.layout, partition)
    assert receipt is not None
    original, *results = copies(settings, "7.json")
    assert (original.state, original.address, original.key) == (
        "stored",
        receipt.address,
        receipt.key,
    )
    assert (original.member, original.current, original.node) == ("7.json", True, "local")
    assert original.sha256 == active.sha256
    assert [one.name for one in results] == ["results/7.json", "results/7~2.json"]
    at = original.sinks["rows"]
    assert (at.state, at.attempts > 0, "switched off" in at.error) == ("owed", True, True)
    (tmp_path / "on").touch()
    opened = ArchiveFinder({settings.name: settings}).open
    list(store_partitions([partition], settings, "rows", opened))
    assert copies(settings, "7.json")[0].sinks["rows"].state == "stored"
    assert json.loads(json.dumps(as_builtins(original)))["address"] == receipt.address


def test_looking_creates_and_changes_nothing(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    assert copies(settings, "a.json") == []
    assert letters(settings, "a.json") == []
    assert list(tmp_path.iterdir()) == []
    sealed(settings, {"a.json": b"1"})
    shipped(settings)
    sealed(settings, {"a.json": b"2"})
    keep_letter(settings, b"a.json")
    before = tree(tmp_path)
    assert len(copies(settings, "a.json")) == 2
    assert tree(tmp_path) == before


def test_a_name_in_two_archives_and_one_on_this_disk_are_three_copies_oldest_first(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path)
    partitions = []
    for number in range(2):
        partitions.append(sealed(settings, {"a.json": b"%d" % number}, slot=number).seal.partition)
        shipped(settings)
    partitions.append(sealed(settings, {"a.json": b"2"}).seal.partition)
    found = copies(settings, "a.json")
    assert [copy.partition for copy in found] == partitions
    assert [copy.state for copy in found] == ["stored", "stored", "sealed"]
    assert len({copy.sha256 for copy in found}) == 3


def test_another_message_of_the_name_is_found_under_its_numbered_name(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    with SlotOwner(settings, 0) as writer:
        for number in range(3):
            writer.add("a.json", b"%d" % number)
        writer.add("a~x.json", b"")
        writer.add("ab.json", b"")
        writer.commit()
        assert {one.name for one in copies(settings, "a.json")} == {
            "a.json",
            "a~2.json",
            "a~3.json",
        }
        writer.seal("request")
    shipped(settings)
    shutil.rmtree(settings.layout.shipped)
    assert {one.name for one in copies(settings, "a.json")} == {"a.json", "a~2.json", "a~3.json"}
    assert one(settings, "a~2.json").name == "a~2.json"


def test_numbered_results_are_found_by_the_name_of_their_item(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, process=Script())
    names = [".hidden", "a.b.json", "a"]
    sealed(settings, {name: script(results=2) for name in names})
    for _ in range(2):
        list(process_partitions(sealed_partitions(settings.layout), settings))
        for name in names:
            found = {one.name for one in copies(settings, name)}
            assert found == {name, f"results/{name}", f"results/{numbered_name(name, 2)}"}
            result = f"results/{name}"
            assert {one.name for one in copies(settings, result)} == found - {name}
        shipped(settings)


def test_of_a_redo_both_archives_are_found_and_only_the_new_one_is_current(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, process=Script())
    partition = sealed(settings, {"a.json": script()}).seal.partition
    shipped(settings)
    opened = ArchiveFinder({settings.name: settings}).open
    (outcome,) = redo_partitions([partition], settings, settings.store.open(), opened)
    assert isinstance(outcome, Done)
    receipt = find_receipt(settings.layout, partition)
    assert receipt is not None
    found = [copy for copy in copies(settings, "a.json") if copy.name == "a.json"]
    assert len({copy.address for copy in found}) == 2
    assert {copy.address: copy.current for copy in found}[receipt.address] is True
    assert sorted(copy.current is True for copy in found) == [False, True]
    assert [copy.redo for copy in found] == [False, False]
    (settings.layout.redo / partition).mkdir(parents=True)
    assert all(copy.redo for copy in copies(settings, "a.json"))


def test_an_archive_of_results_alone_has_the_message_without_a_member(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, process=Script(keep="results"))
    sealed(settings, {"a.json": script(name="other.bin")})
    shipped(settings)
    found = one(settings, "a.json")
    assert (found.state, found.member, found.current) == ("stored", None, True)
    assert one(settings, "other.bin").member == "results/other.bin"


def test_without_the_catalog_recent_archives_are_found_and_it_says_what_it_did_not_see(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path)
    sealed(settings, {"a.json": b"1"})
    shipped(settings)
    with_it = one(settings, "a.json")
    remove_catalog(settings.layout)
    search = Search(settings, Wanted("a.json"))
    assert list(search.copies()) == [with_it]
    assert "fuploader catalog rebuild" in search.incomplete()[0]
    settings.layout.catalog.write_bytes(b"broken" * 1000)
    search = Search(settings, Wanted("a.json"))
    assert list(search.copies()) == [with_it]
    assert search.catalog_trouble is not None


def test_an_archive_of_another_node_is_found_with_its_node_and_nothing_is_made_up(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, sinks={"rows": RowsFile(path=tmp_path / "rows.sqlite")})
    partition = "20261120T234501123Z-far.away-s0-000017"
    with Catalog(settings.layout.catalog) as catalog:
        catalog.add(CatalogedArchive("s3://b/k", "k", partition, "2026", 1, 9, None), ["a.json"])
        catalog.add(CatalogedArchive("s3://b/k2", "k2", "../../x", "", 1, 9, None), ["b.json"])
    found = one(settings, "a.json")
    assert (found.node, found.current, found.sinks) == ("far.away", None, {})
    assert one(settings, "b.json").partition is None


def test_a_sink_that_refused_a_file_is_named_until_its_letter_is_stored(tmp_path: Path) -> None:
    rows = RowsFile(path=tmp_path / "rows.sqlite")
    settings = pipeline(tmp_path, sinks={"rows": rows})
    sealed(settings, {"a.json": b'{"refused": 1}', "b.json": b'{"n": 1}'})
    shipped(settings)
    assert one(settings, "b.json").sinks["rows"].state == "stored"
    assert one(settings, "a.json").sinks["rows"].state == "rejected"
    (letter,) = letters(settings, "a.json")
    assert (letter.stage, letter.waits, letter.name) == ("sink:rows", True, "a.json")
    note_requeued(settings.layout, [letter.id])
    (letter,) = letters(settings, "a.json")
    assert (letter.waits, letter.sent_back) == (False, True)
    assert one(settings, "a.json").sinks["rows"].state == "stored"


def test_a_dead_letter_of_the_processing_is_found_and_settled_by_a_redo(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, process=Script())
    partition = sealed(settings, {"a.json": script(bad="no"), "b.json": script()}).seal.partition
    list(process_partitions([partition], settings))
    assert one(settings, "a.json").results == -1
    (letter,) = letters(settings, "a.json")
    assert (letter.stage, letter.reason, letter.partition) == ("process", "no", partition)
    assert (letter.waits, letter.settled) == (True, "")
    shipped(settings)
    opened = ArchiveFinder({settings.name: settings}).open
    list(redo_partitions([partition], settings, settings.store.open(), opened))
    first, second = letters(settings, "a.json")
    assert (first.waits, second.waits) == (False, True)
    assert "another processing" in first.settled


@pytest.mark.parametrize("message_format", ["envelope", "json", "raw"])
def test_a_message_that_could_not_become_a_file_is_found_by_its_id_and_by_its_name(
    tmp_path: Path, message_format: str
) -> None:
    settings = pipeline(tmp_path, message_format=message_format)
    bodies = {
        "a.json": encode("a.json", b"{}")[:-3] + b'"}',
        "é 1": json.dumps({"file_id": "é 1", "payload": 1}).encode(),
    }
    for number, body in enumerate(bodies.values()):
        keep_letter(settings, body, message_id=f"id-{number}")
    keep_letter(settings, b"\xff", message_id=None)
    for number, name in enumerate(bodies):
        (by_id,) = letters(settings, f"id-{number}")
        assert (by_id.stage, by_id.waits, by_id.message_id) == ("drain", True, f"id-{number}")
        if message_format != "raw":
            assert letters(settings, name) == [by_id]
            assert by_id.name == name
    assert len(letters(settings, decode_raw(b"\xff").file_name)) == 1


def test_a_file_is_found_by_the_message_id_that_is_kept_with_it(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, headers=["Message-Id"])
    with SlotOwner(settings, 0) as writer:
        for name, number in (("a.json", "id-1"), ("b.json", 'id-"2"')):
            writer.add(name, b"1", to_text({"Message-Id": number}))
        writer.add("c.json", b"1", to_text({"other": "id-1"}))
        writer.seal("request")
    assert one(settings, "id-1").name == "a.json"
    assert one(settings, 'id-"2"').name == "b.json"
    shipped(settings)
    assert one(settings, "id-1").state == "stored"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_names_that_nobody_has(tmp_path: Path, name: str) -> None:
    settings = pipeline(tmp_path)
    sealed(settings, {"a.json": b"1"})
    shipped(settings)
    sealed(settings, {"b.json": b"1"})
    keep_letter(settings, b"x")
    sealed(settings, {"a~2.json": b"1"}, slot=1)
    search = Search(settings, Wanted(name))
    assert search.letters() == []
    assert list(search.copies()) == []
    assert search.incomplete() == []
    assert search.catalog_trouble is None


@pytest.mark.parametrize("name", ["a[1].json", "*", "消息.json", "a'\"b", "A b.json"])
def test_an_odd_name_is_found_as_it_is_and_means_no_other(tmp_path: Path, name: str) -> None:
    settings = pipeline(tmp_path)
    for _ in range(2):
        sealed(settings, {name: b"1", "a1.json": b"1", "a b.json": b""})
        assert {one.name for one in copies(settings, name)} == {name}
        shipped(settings)
    shutil.rmtree(settings.layout.shipped)
    assert [one.name for one in copies(settings, name)] == [name, name]


def test_a_pattern_finds_what_is_on_this_disk_and_what_is_stored(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    sealed(settings, {"a1.json": b"", "b.json": b""})
    shipped(settings)
    sealed(settings, {"a2.json": b""})
    with SlotOwner(settings, 1) as writer:
        writer.add("a3.json", b"")
        writer.commit()
        found = list(Search(settings, Wanted("a?.json", patterns=True)).copies())
    assert sorted((one.name, one.state) for one in found) == [
        ("a1.json", "stored"),
        ("a2.json", "sealed"),
        ("a3.json", "active"),
    ]
    assert copies(settings, "a?.json") == []
    with pytest.raises(ConfigError, match="characters"):
        Wanted("*" * 5000, patterns=True)


def test_what_it_may_not_read_is_said(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    sealed(settings, {"a.json": b"1"})
    sealed(settings, {f"{n}.json": b"1" for n in range(100)}, slot=1)
    keep_letter(settings, b"x" * 4000, message_id="a.json")
    search = Search(settings, Wanted("a.json"), most_bytes=5000)
    assert search.letters() == []
    assert len(list(search.copies())) == 1
    assert search.incomplete() == [
        "1 sealed slots: too much to read",
        "1 files of dead letters: too much to read",
    ]


def test_a_damaged_slot_hides_no_other_copy(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    bad = sealed(settings, {"a.json": b"1", "b.json": b"2"})
    good = sealed(settings, {"a.json": b"2"}, slot=1)
    path = bad.directory / "index"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    search = Search(settings, Wanted("a.json"))
    assert [copy.partition for copy in search.copies()] == [good.seal.partition]
    assert "is not the one that was sealed" in search.incomplete()[0]


def test_why_a_slot_is_not_further_is_said(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, packer=broken_packer)
    sealed(settings, {"a.json": b"1"})
    for _ in range(2):
        list(ship(settings, settings.store.open()))
    trouble = one(settings, "a.json").trouble
    assert trouble is not None
    assert (trouble.stage, trouble.attempts) == ("upload", 2)
    assert "broken_packer" in trouble.error


def broken_packer(directory: Path) -> Path:
    raise ValueError(directory.name)


def test_all_states_of_a_search_are_json(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    sealed(settings, {"a.json": b"1"})
    keep_letter(settings, b"", message_id="a.json")
    found: Sequence[Copy | Letter] = [*copies(settings, "a.json"), *letters(settings, "a.json")]
    states = [json.loads(json.dumps(as_builtins(copy)))["state"] for copy in found]
    assert states == ["sealed", "dead letter"]


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "7",
        "a.json",
        "a~2.json",
        "a.b.c",
        ".hidden",
        "~",
        "x" * 99 + ".json",
        "y" * 255,
        "消" * 80 + ".json",
        "name.with-an-ending-of-more-than-twenty",
        "\udc80.json",
    ],
)
def test_no_index_is_passed_over_that_has_a_record_of_the_name(name: str, headers: bool) -> None:
    wanted = Wanted(name)
    text = to_text({"x": "1"}) if headers else ""
    others = [index_entry(f"{n}.json", text) for n in range(50)]
    stored = [name]
    if not name.startswith("\udc80"):  # as bytes that are no UTF-8, which get no number
        stored += [numbered_name(name, number) for number in (2, 10, 123_456_789)]
    results = [f"results/{one}" for one in stored]
    stored += [one for one in results if len(one.encode("utf-8", "surrogateescape")) < 256]
    for one in stored:
        for entries in ([index_entry(one, text)], [*others, index_entry(one, text), *others]):
            content = written(entries)
            assert wanted.may_be_in_index(content), one
            assert wanted.fits(one)


@pytest.mark.parametrize("name", ["a.json", "1", "1.json", "10.b", "9.jso"])
def test_an_index_without_the_name_is_not_read(name: str) -> None:
    entries = [index_entry(f"{n}.json", "") for n in range(10, 60)]
    assert not Wanted(name).may_be_in_index(written(entries))


def index_entry(name: str, headers: str) -> IndexEntry:
    sha256 = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return IndexEntry(name, 512, 512, 7, sha256, headers)


def written(entries: list[IndexEntry]) -> bytes:
    """As a writer writes it, names that are no UTF-8 too."""
    make = record_with_headers if entries[0].headers else record
    records = [make(one.name.encode("utf-8", "surrogateescape"), *one[1:]) for one in entries]
    return whole_index(records, WITH_HEADERS if entries[0].headers else PLAIN)
