"""A sealed slot that is damaged: what it proves is stored, the rest is set aside and named."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fuploader_dagster.delivery import recovery
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.failures import all_failures
from fuploader_dagster.delivery.mended import MENDED_SLOT, all_mended, find_mended
from fuploader_dagster.delivery.ship import pack_partitions, ship, upload_partitions
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.dedup_window import DedupWindow
from fuploader_dagster.slots.receipts import receipts_between
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed, sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner
from tests.lives import pack_by_hand
from tests.settings import archived_files, pipeline, sealed

FILES = {f"{number}.json": b"%d" % number * 700 for number in range(5)}
VICTIM = "2.json"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, to: int) -> None:
    path.write_bytes(path.read_bytes()[:to])


def entry_of(slot: SealedSlot, name: str = VICTIM) -> tuple[int, int]:
    """Where a message's header and payload begin in the segment."""
    (entry,) = [one for one in slot.entries() if one.name == name]
    return entry.offset, entry.offset + entry.header_bytes


def in_seal(slot: SealedSlot, **values: object) -> None:
    path = slot.directory / "seal.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def record_at(slot: SealedSlot, name: str = VICTIM) -> int:
    return (slot.directory / "index").read_bytes().index(name.encode())


ROT: dict[str, tuple[Callable[[SealedSlot], object], set[str]]] = {
    "a payload": (lambda s: flip(s.segment, entry_of(s)[1] + 5), {VICTIM}),
    "a header": (lambda s: flip(s.segment, entry_of(s)[0]), {VICTIM}),
    "padding": (lambda s: flip(s.segment, entry_of(s, "3.json")[0] - 1), {VICTIM}),
    "a record": (lambda s: flip(s.directory / "index", record_at(s)), {VICTIM}),
    "the index's header": (lambda s: flip(s.directory / "index", 3), set()),
    "a segment cut off": (lambda s: cut(s.segment, entry_of(s, "3.json")[0]), {"3.json", "4.json"}),
    "an index cut off": (
        lambda s: cut(s.directory / "index", record_at(s, "4.json")),
        {"4.json"},
    ),
    "no segment": (lambda s: s.segment.unlink(), set(FILES)),
    "no index": (lambda s: (s.directory / "index").unlink(), set(FILES)),
    "the segment's digest": (lambda s: in_seal(s, segment_xxh128="0" * 32), set()),
    "the index's digest": (lambda s: in_seal(s, index_sha256="0" * 64), set()),
    "the count": (lambda s: in_seal(s, messages=7), set()),
    "the seal": (lambda s: cut(s.directory / "seal.json", 40), set()),
    "no seal": (lambda s: (s.directory / "seal.json").unlink(), set()),
}


@pytest.mark.parametrize("damage", ROT)
def test_whatever_rots_in_a_sealed_slot_what_is_proven_gets_through_once(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the damaged directory is set aside as it was, with the names that are only there."""
    settings = pipeline(tmp_path)
    layout = settings.layout
    good, slot = sealed(settings, {"good.json": b"good"}), sealed(settings, FILES)
    rot, lost = ROT[damage]
    rot(slot)
    before = {p.name: p.read_bytes() for p in slot.directory.iterdir()}
    store = settings.store.open()
    outcomes = list(ship(settings, store))
    proven = {name: [content] for name, content in FILES.items() if name not in lost}
    assert archived_files(tmp_path / "objects") == {"good.json": [b"good"], **proven}
    assert good.seal.partition in receipts_between(layout)
    (record,) = all_mended(layout)
    aside = layout.root / record.set_aside
    assert {p.name: p.read_bytes() for p in aside.iterdir()} == before
    assert (record.stored, bool(record.stored_as)) == (len(proven), bool(proven))
    known = lost if "index" in before and damage not in ("a record", "an index cut off") else set()
    assert set(record.lost) == known
    failed = [one.error for one in outcomes if isinstance(one, Failed)]
    said = "".join(failed) or caplog.text  # one without a readable seal has no partition to fail
    assert str(aside) in said
    assert record.stored_as in said
    assert all(repr(name) in said for name in record.lost)
    assert sealed_partitions(layout) == []
    assert list(all_failures(layout)) == []
    assert list(ship(settings, store)) == []


def test_a_file_of_the_files_format_that_rots_is_set_aside_and_the_others_get_through(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, slot_format="files")
    slot = sealed(settings, FILES)
    flip(slot.files / VICTIM, 3)
    (slot.files / "4.json").unlink()
    (failed, _) = ship(settings, settings.store.open())
    assert isinstance(failed, Failed)
    assert archived_files(tmp_path / "objects").keys() == FILES.keys() - {VICTIM, "4.json"}
    (record,) = all_mended(settings.layout)
    assert set(record.lost) == {VICTIM, "4.json"}


def test_a_custom_packer_gets_what_is_proven_too(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, packer=pack_by_hand)
    slot = sealed(settings, FILES)
    flip(slot.segment, entry_of(slot)[1])
    failed, done = ship(settings, settings.store.open())
    assert isinstance(failed, Failed)
    assert isinstance(done, Done)
    assert done.receipt is not None
    assert done.receipt.messages == len(FILES) - 1


def damaged_slot(tmp_path: Path) -> tuple[Pipeline, SealedSlot]:
    settings = pipeline(tmp_path)
    slot = sealed(settings, FILES)
    flip(slot.segment, entry_of(slot)[1])
    return settings, slot


def test_a_mended_partition_fails_once_and_is_then_done_with_a_note(tmp_path: Path) -> None:
    """As the recovery asks: the run that found it is red, the partition does not stay so."""
    settings, slot = damaged_slot(tmp_path)
    key = slot.seal.partition
    (failed,) = pack_partitions([key], settings)
    assert isinstance(failed, Failed)
    assert failed.permanent
    record = find_mended(settings.layout, key)
    assert record is not None
    found = recovery.look(settings)
    assert (found.sealed, found.mended) == ([record.stored_as], (key,))
    asked = recovery.plan(found, settings, busy=[], now=2.0**32).ask
    assert asked == [record.stored_as, key]
    store = settings.store.open()
    (packed,) = pack_partitions([key], settings)
    new, done = upload_partitions(asked, settings, store)
    for one in (packed, done):
        assert isinstance(one, Done)
        assert (one.packed, one.receipt) == (None, None)
        assert record.stored_as in one.note
    assert isinstance(new, Done)
    assert new.receipt is not None
    assert recovery.look(settings).mended == ()
    assert recovery.plan(recovery.look(settings), settings, busy=[], now=2.0**32).ask == []


def test_a_message_that_comes_again_is_found_in_what_replaced_its_slot(tmp_path: Path) -> None:
    settings, slot = damaged_slot(tmp_path)
    list(pack_partitions([slot.seal.partition], settings))
    window = DedupWindow(settings.layout, 1000)
    window.refresh()
    held = {
        name for name, body in FILES.items() if window.holds(name, hashlib.sha256(body).digest())
    }
    assert held == FILES.keys() - {VICTIM}


def test_the_writer_of_the_damaged_slots_number_goes_on_undisturbed(tmp_path: Path) -> None:
    settings, slot = damaged_slot(tmp_path)
    with SlotOwner(settings, 0) as writer:
        writer.add("new.json", b"new")
        writer.commit()
        list(ship(settings, settings.store.open()))
        assert writer.seal("request") is not None
    assert set(settings.layout.active_slots()) == {0}
    (key,) = sealed_partitions(settings.layout)
    assert find_sealed(settings.layout, key) is not None
    assert slot.seal.partition not in receipts_between(settings.layout)


def test_a_replacement_that_rots_is_replaced_itself(tmp_path: Path) -> None:
    settings, slot = damaged_slot(tmp_path)
    list(pack_partitions([slot.seal.partition], settings))
    (key,) = sealed_partitions(settings.layout)
    second = find_sealed(settings.layout, key)
    assert second is not None
    assert second.seal.slot == MENDED_SLOT
    flip(second.segment, entry_of(second, "4.json")[1])
    failed, done = ship(settings, settings.store.open())
    assert isinstance(failed, Failed)
    assert isinstance(done, Done)
    assert archived_files(tmp_path / "objects").keys() == FILES.keys() - {VICTIM, "4.json"}


@pytest.mark.parametrize("part", ["seal", "index"])
def test_a_slot_of_another_version_is_whole_and_stays(part: str, tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    slot = sealed(settings, FILES)
    if part == "seal":
        in_seal(slot, version=3)
    else:
        content = bytearray((slot.directory / "index").read_bytes())
        content[8] = 4
        content[12:16] = zlib.crc32(content[:12]).to_bytes(4, "little")
        (slot.directory / "index").write_bytes(content)
        in_seal(slot, index_sha256=hashlib.sha256(content).hexdigest())
    list(ship(settings, settings.store.open()))
    (outcome,) = pack_partitions([slot.seal.partition], settings)
    assert isinstance(outcome, Failed)
    assert "version" in outcome.error
    assert slot.directory.is_dir()
    assert not settings.layout.set_aside.exists()


def test_a_slot_that_rots_behind_its_upload_is_set_aside_and_holds_up_nothing(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, slot_format="files")
    slot = sealed(settings, FILES)
    store = settings.store.open()
    list(pack_partitions([slot.seal.partition], settings))
    flip(slot.directory / "index", 40)
    (done,) = ship(settings, store)
    assert isinstance(done, Done)
    assert archived_files(tmp_path / "objects") == {name: [body] for name, body in FILES.items()}
    assert sealed_partitions(settings.layout) == []
    (aside,) = settings.layout.set_aside.iterdir()
    assert (aside / "index").exists()
