"""Slots of one value each, after they were sealed: the value stays with what is stored of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.catalog.rebuild import rebuild
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.redo import redo_partitions
from fuploader_dagster.delivery.repack import repack_partitions
from fuploader_dagster.delivery.ship import mend_unreadable, ship
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.split import NONE, OTHER
from fuploader_dagster.slots.receipts import Receipt, receipts_between
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot, find_sealed, sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner
from tests.lives import no_key
from tests.processors_for_tests import Script, script
from tests.settings import archived_files, pipeline
from tests.unit.delivery.test_mend import entry_of, flip


def odd_key(archive: str) -> str:
    """A user's function."""
    return f"{archive[::-1][:9]}/{archive}"


SPLIT: dict[str, Any] = {
    "split_by": {"tenant": "tenant", "event": "at"},
    "key": "tenant={tenant}/{event:%Y/%m/%d}/{archive}",
}
STARTS = {"tenant=a/2026/11/20", "tenant=b%2Fc/2026/11/21", f"tenant={NONE}/{NONE}"}


def files() -> dict[str, bytes]:
    fields: list[dict[str, Any]] = [
        {"tenant": "a", "at": "2026-11-20T09:00:00Z"},
        {"tenant": "b/c", "at": "2026-11-21T10:00:00Z"},
        {},
    ]
    return {f"{n}.json": json.dumps({**fields[n % 3], "n": n}).encode() for n in range(12)}


def divided(
    settings: Pipeline, contents: dict[str, bytes] | None = None, slot: int = 0
) -> list[SealedSlot]:
    with SlotOwner(settings, slot) as writer:
        for name, content in (contents or files()).items():
            writer.add(name, content)
        return writer.seal_divided("request")


def shipped(settings: Pipeline) -> list[Receipt]:
    outcomes = list(ship(settings, settings.store.open()))
    assert all(isinstance(one, Done) for one in outcomes), outcomes
    return list(receipts_between(settings.layout).values())


def folders(receipts: list[Receipt]) -> set[str]:
    return {one.key.rpartition("/")[0] for one in receipts}


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_each_archive_is_below_its_values_and_all_files_are_in_one(
    tmp_path: Path, slot_format: str
) -> None:
    settings = pipeline(tmp_path, slot_format=slot_format, **SPLIT)
    divided(settings)
    receipts = shipped(settings)
    assert folders(receipts) == STARTS
    assert [one.messages for one in receipts] == [4, 4, 4]
    assert receipts[1].split == {"tenant": "b%2Fc", "event": "20261121T100000000000Z"}
    assert archived_files(tmp_path / "objects") == {n: [body] for n, body in files().items()}
    assert sealed_partitions(settings.layout) == []


def test_repacked_they_are_below_the_same_values_in_todays_form(tmp_path: Path) -> None:
    before = pipeline(tmp_path, **SPLIT)
    divided(before)
    first = shipped(before)
    key = "day={event:%Y-%m-%d}/of={tenant}/late={later}/{archive}"
    today = pipeline(
        tmp_path, key=key, split_by={**SPLIT["split_by"], "later": "x"}, archive_format="zip"
    )
    partitions = [one.partition for one in first]
    open_archive = ArchiveFinder({"docs": today}).open
    outcomes = list(repack_partitions(partitions, today, today.store.open(), open_archive))
    assert all(isinstance(one, Done) for one in outcomes), outcomes
    again = list(receipts_between(today.layout).values())
    assert folders(again) == {
        f"day=2026-11-20/of=a/late={NONE}",
        f"day=2026-11-21/of=b%2Fc/late={NONE}",
        f"day={NONE}/of={NONE}/late={NONE}",
    }
    assert [one.split for one in again] == [one.split for one in first]


def test_processed_again_they_are_below_the_same_values(tmp_path: Path) -> None:
    settings = pipeline(
        tmp_path, process=Script(), split_by={"made": "results"}, key="{made}/{archive}"
    )
    divided(settings, {f"{n}.json": script(results=n % 2) for n in range(6)})
    first = shipped(settings)
    assert {one.key[:2] for one in first} == {"0/", "1/"}
    partitions = [one.partition for one in first]
    open_archive = ArchiveFinder({"docs": settings}).open
    outcomes = list(redo_partitions(partitions, settings, settings.store.open(), open_archive))
    assert all(isinstance(one, Done) for one in outcomes), outcomes
    again = list(receipts_between(settings.layout).values())
    assert [(one.key[:2], one.split) for one in again] == [
        (one.key[:2], one.split) for one in first
    ]
    assert all(".redo-" in one.key for one in again)


def test_a_damaged_piece_is_mended_below_its_values(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, **SPLIT)
    slots = divided(settings)
    flip(slots[1].segment, entry_of(slots[1], "4.json")[1])
    outcomes = list(ship(settings, settings.store.open()))
    assert [type(one) for one in outcomes] == [Done, Failed, Done, Done]
    receipts = list(receipts_between(settings.layout).values())
    assert folders(receipts) == STARTS
    assert archived_files(tmp_path / "objects").keys() == files().keys() - {"4.json"}


@pytest.mark.parametrize(
    ("values", "start"),
    [({}, "tenant=b%2Fc/2026/11/21"), ({"split_limit": 1}, f"tenant={OTHER}/{OTHER}")],
)
def test_a_piece_whose_seal_is_lost_is_below_what_its_messages_share(
    tmp_path: Path, values: dict[str, Any], start: str
) -> None:
    settings = pipeline(tmp_path, **SPLIT, **values)
    slots = divided(settings)
    (slots[1].directory / SEAL_NAME).write_bytes(b"{")
    (partition,) = mend_unreadable(settings)
    mended = find_sealed(settings.layout, partition)
    assert mended is not None
    assert mended.seal.object_key == f"{start}/{mended.seal.archive}"
    shipped(settings)
    assert archived_files(tmp_path / "objects") == {n: [body] for n, body in files().items()}


def test_a_key_that_is_made_late_has_the_values_too(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, **SPLIT)
    slots = divided(settings.model_copy(update={"key": "{tenant}{event:%Y}" + "x" * 1100}))
    assert [slot.seal.object_key for slot in slots] == [None] * 3
    assert "bytes, not 1 to 1023" in slots[0].seal.key_problem
    assert folders(shipped(settings)) == STARTS


def test_a_slot_from_before_split_by_is_below_none(tmp_path: Path) -> None:
    before = pipeline(tmp_path, key=no_key)
    divided(before)
    assert folders(shipped(pipeline(tmp_path, **SPLIT))) == {f"tenant={NONE}/{NONE}"}


def test_no_two_archives_have_one_key(tmp_path: Path) -> None:
    """Whatever the messages say, over several slots."""
    settings = pipeline(tmp_path, split_limit=20, **SPLIT)
    odd = [".", "..", "a/../b", "", "_none", "_other", "%2E", None, 7, "7", "a" * 500, [], "ä"]
    keys: Counter[str] = Counter()
    for slot in (0, 1, 0):
        contents = {
            f"{n}.json": json.dumps({"tenant": odd[n % 13], "at": n % 5 * 86_400}).encode()
            for n in range(65 * (slot + 1))
        }
        keys.update(str(one.seal.object_key) for one in divided(settings, contents, slot))
    assert set(keys.values()) == {1}
    assert len(keys) == 63
    stored = {str(p.relative_to(tmp_path / "objects")) for p in tmp_path.glob("objects/**/*.zst")}
    assert stored == set()
    receipts = shipped(settings)
    assert {one.key for one in receipts} == set(keys)
    assert all(PartitionKey.parse(one.partition) for one in receipts)


@pytest.mark.parametrize("cataloged", [True, False])
def test_another_node_finds_archives_whose_keys_have_fields_of_messages(
    tmp_path: Path, cataloged: bool
) -> None:
    key = "{pipeline}/{sealed_at:%Y/%m/%d}/tenant={tenant}/{event:%Y}/{archive}"
    process = Script()
    settings = pipeline(tmp_path, **{**SPLIT, "key": key}, process=process)
    content = {name: script(**json.loads(text), results=1) for name, text in files().items()}
    divided(settings, content)
    first = shipped(settings)
    assert len(first) == 3
    other = settings.model_copy(update={"storage_root": tmp_path / "other node", "node_id": "two"})
    if cataloged:
        rebuild(other, other.store.open())
    for one in first:
        with ArchiveFinder({"docs": other}).open(one.partition) as archive:
            assert archive.address == one.address
    finder = ArchiveFinder({settings.name: settings})
    partition = first[0].partition
    (done,) = redo_partitions([partition], settings, settings.store.open(), finder.open)
    assert isinstance(done, Done) and done.receipt is not None
    if cataloged:
        rebuild(other, other.store.open())
    with ArchiveFinder({"docs": other}).open(partition) as archive:
        assert archive.address == done.receipt.address
    with pytest.raises(StoreRefused, match="nor where their keys say"):
        ArchiveFinder({"docs": other}).find(partition.replace("-local-", "-lost-"))


def test_of_keys_that_a_function_makes_it_is_said_what_to_do(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, key=odd_key)
    with SlotOwner(settings, 0) as writer:
        writer.add("a", b"a")
        writer.seal_divided("request")
    (one,) = shipped(settings)
    other = settings.model_copy(update={"storage_root": tmp_path / "other node"})
    with pytest.raises(StoreRefused) as refused:
        ArchiveFinder({"docs": other}).find(one.partition)
    assert "fuploader catalog rebuild" in refused.value.hint
    rebuild(other, other.store.open())
    assert ArchiveFinder({"docs": other}).find(one.partition).sha256 == one.sha256
