"""Dividing: a directory becomes sealed slots of one value each, in one step, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_128

from fuploader_dagster.delivery.recovery import seal_unowned
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.crash_points import CrashPoint, observe
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import DamagedSlot, DiskFull, OtherFormat
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from fuploader_dagster.settings.split import NONE, OTHER
from fuploader_dagster.slots.dedup_window import DedupWindow
from fuploader_dagster.slots.sealing import (
    SEAL_NAME,
    SealedSlot,
    find_sealed,
    read_seal,
    sealed_partitions,
)
from fuploader_dagster.slots.segment import SEGMENT_NAME
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import intake, pipeline
from tests.unit.slots.test_slot import contents

FORMATS = ["segment", "files"]
SPLIT = {"split_by": ["tenant"], "key": "tenant={tenant}/{archive}"}


class Killed(BaseException):
    """In place of kill -9."""


def message(tenant: Any, n: int = 0) -> bytes:
    return json.dumps({"tenant": tenant, "n": n}).encode()


def of_tenants(*tenants: str | None) -> dict[str, bytes]:
    return {f"{n}.json": message(tenant, n) for n, tenant in enumerate(tenants)}


def by_tenant(slots: list[SealedSlot]) -> dict[str, dict[str, bytes]]:
    found = {slot.seal.split["tenant"]: contents(slot) for slot in slots}
    assert len(found) == len(slots)
    return found


def filled(slot: SlotOwner, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        slot.add(name, content)
    slot.commit()


def killed_at(point: CrashPoint) -> Callable[[CrashPoint], None]:
    def observer(reached: CrashPoint) -> None:
        if reached is point:
            raise Killed

    return observer


def killed_while_dividing(settings: Intake, files: dict[str, bytes], point: CrashPoint) -> None:
    """Leaves what a process leaves that is killed there."""
    with ExitStack() as stack:
        slot = stack.enter_context(SlotOwner(settings, 0))
        filled(slot, files)
        stack.callback(observe, None)
        observe(killed_at(point))
        with pytest.raises(Killed):
            slot.seal_divided("request")


@pytest.mark.parametrize("slot_format", FORMATS)
def test_each_value_has_its_slot_with_its_messages_in_their_order(
    tmp_path: Path, slot_format: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format, headers=["cmd"], **SPLIT)
    files = of_tenants("b", "a", None, "b", "a/b", "a", "b")
    with SlotOwner(settings, 3) as slot:
        for name, content in files.items():
            slot.add(name, content, to_text({"cmd": name}))
        slot.commit()
        made = slot.seal_divided("count")
        assert slot.count.messages == 0
    assert [one.seal.split for one in made] == [
        {"tenant": tenant} for tenant in ("b", "a", NONE, "a%2Fb")
    ]
    assert [list(one) for one in by_tenant(made).values()] == [
        ["0.json", "3.json", "6.json"],
        ["1.json", "5.json"],
        ["2.json"],
        ["4.json"],
    ]
    assert {n: c for one in made for n, c in contents(one).items()} == files
    for number, one in enumerate(made, start=2):
        seal = one.seal
        assert (seal.slot, seal.number, seal.piece_of, seal.version) == (3, number, 1, 2)
        assert seal.reason == "count"
        assert seal.object_key == f"tenant={seal.split['tenant']}/{seal.archive}"
        assert seal.messages == len(one.entries())
        assert [entry.headers for entry in one.entries()] == [
            to_text({"cmd": entry.name}) for entry in one.entries()
        ]
        assert find_sealed(settings.layout, seal.partition) == one
        assert one.unrecognised() == []
        if slot_format == "segment":
            assert seal.segment_xxh128 == xxh3_128(one.segment.read_bytes()).hexdigest()
            with tarfile.open(one.segment) as tar:
                assert [member.name for member in tar] == list(contents(one))
    assert len({one.seal.object_key for one in made}) == 4
    assert sealed_partitions(settings.layout) == sorted(one.seal.partition for one in made)
    assert settings.layout.active_numbers(3) == []
    assert not list(settings.layout.root.rglob(".tmp-*"))


@pytest.mark.parametrize("slot_format", FORMATS)
def test_a_directory_of_one_value_is_sealed_as_it_is(tmp_path: Path, slot_format: str) -> None:
    settings = intake(tmp_path, slot_format=slot_format, **SPLIT)
    with SlotOwner(settings, 0) as slot:
        filled(slot, of_tenants("a", "a"))
        (made,) = slot.seal_divided("age")
    seal = made.seal
    assert (seal.number, seal.piece_of, seal.version, seal.split) == (1, None, 1, {"tenant": "a"})
    assert seal.object_key == f"tenant=a/{seal.archive}"
    assert contents(made) == of_tenants("a", "a")


def test_without_split_by_nothing_changes(tmp_path: Path) -> None:
    with SlotOwner(intake(tmp_path), 0) as slot:
        assert slot.seal_divided("request") == []
        filled(slot, of_tenants("a", "b"))
        (made,) = slot.seal_divided("request")
    assert (made.seal.split, made.seal.piece_of, made.seal.version) == ({}, None, 1)


def test_more_values_than_the_limit_share_one_slot_and_numbers_go_on(tmp_path: Path) -> None:
    settings = intake(tmp_path, split_limit=2, **SPLIT)
    with SlotOwner(settings, 0) as slot:
        filled(slot, of_tenants("rare", "a", "b", "a", "b", "other", "_other"))
        made = slot.seal_divided("request")
        assert by_tenant(made).keys() == {"a", "b", OTHER}
        assert list(by_tenant(made)[OTHER]) == ["0.json", "5.json", "6.json"]
        assert slot.count.number == 4, "the state store remembers the highest number"
        filled(slot, of_tenants("a"))
        assert slot.count.number == 5
        assert slot.count.number > max(one.seal.number for one in made)


def test_the_same_messages_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for folder in ("one", "two"):
        with SlotOwner(intake(tmp_path / folder, **SPLIT), 0, clock=lambda: 1795218301.5) as slot:
            filled(slot, of_tenants("b", "a", "b"))
            made.append(slot.seal_divided("request"))
    files = [
        [path.read_bytes() for one in slots for path in sorted(one.directory.iterdir())]
        for slots in made
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("slot_format", FORMATS)
@pytest.mark.parametrize("point", [CrashPoint.PIECES_SYNCED, CrashPoint.PIECE_NAMED])
def test_until_all_pieces_are_there_none_counts_and_the_directory_goes_on(
    tmp_path: Path, slot_format: str, point: CrashPoint
) -> None:
    settings = intake(tmp_path, slot_format=slot_format, **SPLIT)
    files = of_tenants("a", "b", "a", "c")
    killed_while_dividing(settings, files, point)
    layout = settings.layout
    assert layout.sealed_dirs() or point is CrashPoint.PIECES_SYNCED
    assert sealed_partitions(layout) == []
    for directory in layout.sealed_dirs():
        assert find_sealed(layout, read_seal(directory).partition) is None
    with SlotOwner(settings, 0) as slot:
        assert layout.sealed_dirs() == []
        assert slot.count.messages == 4
        assert not slot.add("0.json", files["0.json"])
        filled(slot, {"more.json": message("b")})
        made = slot.seal_divided("request")
    assert {n: c for one in made for n, c in contents(one).items()} == {
        **files,
        "more.json": message("b"),
    }
    assert [one.seal.number for one in made] == [5, 6, 7]  # 2 to 4 are not used again


@pytest.mark.parametrize("point", [CrashPoint.TREE_DOOMED, CrashPoint.DIVIDED])
def test_once_the_directory_has_gone_its_pieces_count(tmp_path: Path, point: CrashPoint) -> None:
    settings = intake(tmp_path, **SPLIT)
    killed_while_dividing(settings, of_tenants("a", "b"), point)
    assert len(sealed_partitions(settings.layout)) == 2
    with SlotOwner(settings, 0) as slot:
        assert slot.count.messages == 0
    assert len(sealed_partitions(settings.layout)) == 2


def test_what_nobody_owns_any_more_is_divided_too(tmp_path: Path) -> None:
    settings = intake(tmp_path, **SPLIT)
    with SlotOwner(settings, 7) as slot:
        filled(slot, of_tenants("a", "b"))
    assert by_tenant(seal_unowned(settings, [7])).keys() == {"a", "b"}


def test_split_by_may_be_switched_on_and_off_between_two_seals(tmp_path: Path) -> None:
    with SlotOwner(intake(tmp_path), 0) as slot:
        filled(slot, of_tenants("a", "b"))
    with SlotOwner(intake(tmp_path, **SPLIT), 0) as slot:
        assert len(slot.seal_divided("request")) == 2
    killed_while_dividing(intake(tmp_path, **SPLIT), of_tenants("a", "b"), CrashPoint.PIECE_NAMED)
    with SlotOwner(intake(tmp_path), 0) as slot:
        (whole,) = slot.seal_divided("request")
    assert contents(whole) == of_tenants("a", "b")
    assert len(sealed_partitions(intake(tmp_path).layout)) == 3


def test_a_message_that_rotted_stops_it_and_the_next_owner_saves_the_others(
    tmp_path: Path,
) -> None:
    settings = intake(tmp_path, **SPLIT)
    files = of_tenants("a", "b", "a", "b")
    with SlotOwner(settings, 0) as slot:
        filled(slot, files)
        segment = settings.layout.active(0, 1) / SEGMENT_NAME
        content = segment.read_bytes()
        segment.write_bytes(content.replace(b'"n": 2', b'"n": 9'))
        with pytest.raises(DamagedSlot, match=r"'2\.json' in"):
            slot.seal_divided("request")
    assert settings.layout.sealed_dirs() == []
    with SlotOwner(settings, 0) as slot:
        made = slot.seal_divided("request")
    del files["2.json"]
    assert {n: c for one in made for n, c in contents(one).items()} == files


def test_a_full_disk_leaves_the_directory_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = intake(tmp_path, **SPLIT)
    files = of_tenants("a", "b")
    with SlotOwner(settings, 0) as slot:
        filled(slot, files)
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fail(*_: object) -> None:
            raise full

        with monkeypatch.context() as patched:
            patched.setattr("fuploader_dagster.slots.dividing.write_all", fail)
            with pytest.raises(DiskFull):
                slot.seal_divided("request")
    assert not list(settings.layout.root.rglob(".tmp-*"))
    with SlotOwner(settings, 0) as slot:
        made = slot.seal_divided("request")
    assert {n: c for one in made for n, c in contents(one).items()} == files


def test_files_are_copied_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    settings = intake(tmp_path, slot_format="files", **SPLIT)
    with SlotOwner(settings, 0) as slot:
        filled(slot, of_tenants("a", "b", "a"))
        monkeypatch.setattr(os, "link", fail)
        made = slot.seal_divided("request")
    assert {n: c for one in made for n, c in contents(one).items()} == of_tenants("a", "b", "a")


def test_software_that_does_not_know_pieces_leaves_them_alone(tmp_path: Path) -> None:
    """Their version says so; a seal of a version after this one is refused."""
    with SlotOwner(intake(tmp_path, **SPLIT), 0) as slot:
        filled(slot, of_tenants("a", "b"))
        piece, _ = slot.seal_divided("request")
    path = piece.directory / SEAL_NAME
    assert json.loads(path.read_text())["version"] == 2
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 3}))
    with pytest.raises(OtherFormat, match="version 3, this software reads 1 and 2"):
        read_seal(piece.directory)


def test_a_seal_from_before_split_by_is_read(tmp_path: Path) -> None:
    with SlotOwner(intake(tmp_path), 0) as slot:
        filled(slot, of_tenants("a"))
        (sealed,) = slot.seal_divided("request")
    path = sealed.directory / SEAL_NAME
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("split", "piece_of")}
    path.write_text(json.dumps(old))
    assert read_seal(sealed.directory) == sealed.seal


def holds(window: DedupWindow, name: str, content: bytes) -> bool:
    return window.holds(name, hashlib.sha256(content).digest())


def test_a_redelivered_message_is_found_in_its_piece(tmp_path: Path) -> None:
    settings: Pipeline = pipeline(tmp_path, **SPLIT)
    files = of_tenants("a", "b", "a")
    before, meanwhile = (DedupWindow(settings.layout, 1000) for _ in range(2))
    with SlotOwner(settings, 0) as slot:
        filled(slot, files)
        before.refresh()
        made = slot.seal_divided("request")
        meanwhile.refresh()
    after = DedupWindow(settings.layout, 1000)
    after.refresh()
    for window in (before, meanwhile, after):
        assert all(holds(window, name, content) for name, content in files.items())
        assert not holds(window, "0.json", files["1.json"])
    list(ship(settings, settings.store.open()))
    assert not made[0].directory.exists()
    for window in (before, meanwhile, after):
        assert all(holds(window, name, content) for name, content in files.items())


@pytest.mark.parametrize("shipped", [False, True])
def test_a_name_and_its_numbered_name_may_be_in_two_pieces(tmp_path: Path, shipped: bool) -> None:
    settings = pipeline(tmp_path, **SPLIT)
    with SlotOwner(settings, 0, clock=lambda: 1795218301.5) as slot:
        filled(slot, {"x.json": message("a")})
        filled(slot, {"x.json": message("b"), "y~2.json": message("c")})
        made = slot.seal_divided("request")
    with SlotOwner(settings, 0, clock=lambda: 1795218302.5) as slot:
        filled(slot, {"y.json": message("d")})
        slot.seal_divided("request")
    assert [list(one) for one in by_tenant(made).values()] == [
        ["x.json"],
        ["x~2.json"],
        ["y~2.json"],
    ]
    if shipped:
        list(ship(settings, settings.store.open()))
    window = DedupWindow(settings.layout, 1000)
    window.refresh()
    assert holds(window, "x.json", message("a"))
    assert holds(window, "x.json", message("b"))
    assert not holds(window, "y.json", message("c")), "y.json is in another directory"


def test_pieces_have_the_time_of_their_directorys_seal(tmp_path: Path) -> None:
    with SlotOwner(intake(tmp_path, **SPLIT), 0) as slot:
        filled(slot, of_tenants("a", "b"))
        keys = [PartitionKey.parse(one.seal.partition) for one in slot.seal_divided("request")]
    assert len({key.sealed_at for key in keys if key}) == 1
    assert [key.number for key in keys if key] == [2, 3]
