"""`seal_each: message`: each message is a sealed slot of its own when its batch is committed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.recovery import seal_unowned
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.slots import dividing
from fuploader_dagster.slots.receipts import receipts_between
from fuploader_dagster.slots.sealing import sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import archived_files, intake, pipeline
from tests.unit.slots.test_dividing import FORMATS, filled
from tests.unit.slots.test_slot import contents

EACH: dict[str, Any] = {"seal_each": "message"}
BY_TASK: dict[str, Any] = {
    **EACH,
    "split_by": ["task_id"],
    "split_limit": 1,
    "key": "tasks/{task_id}/{archive}",
}


def tasks(*names: Any) -> dict[str, bytes]:
    return {f"{n}.json": json.dumps({"task_id": name}).encode() for n, name in enumerate(names)}


@pytest.mark.parametrize("values", [EACH, BY_TASK])
@pytest.mark.parametrize("slot_format", FORMATS)
def test_each_message_is_a_slot_of_its_own(
    tmp_path: Path, slot_format: str, values: dict[str, Any]
) -> None:
    settings = intake(tmp_path, slot_format=slot_format, **values)
    files = tasks("a", "b", "a", "b", "a")
    with SlotOwner(settings, 0) as slot:
        assert slot.due() is None
        filled(slot, files)
        assert slot.due() == "count"
        made = slot.seal_divided("count")
        assert slot.due() is None
    assert [contents(one) for one in made] == [{name: body} for name, body in files.items()]
    assert len(set(sealed_partitions(settings.layout))) == len(files)


def test_a_message_alone_is_sealed_as_it_is(tmp_path: Path) -> None:
    with SlotOwner(intake(tmp_path, **BY_TASK), 0) as slot:
        filled(slot, tasks("a"))
        (made,) = slot.seal_divided("count")
    assert (made.seal.number, made.seal.piece_of, made.seal.version) == (1, None, 1)
    assert made.seal.object_key == f"tasks/a/{made.seal.archive}"


def test_each_archive_is_below_its_own_tasks_name(tmp_path: Path) -> None:
    """However many names there are: `split_limit` is for slots of many messages."""
    settings = pipeline(tmp_path, **BY_TASK)
    names = ["t1", "t2", "../x", None, "客户", "t1", 7]
    with SlotOwner(settings, 0) as slot:
        filled(slot, tasks(*names))
        slot.seal_divided("count")
    list(ship(settings, settings.store.open()))
    folders = Counter(one.key.split("/")[1] for one in receipts_between(settings.layout).values())
    assert folders == {"t1": 2, "t2": 1, "%2E.%2Fx": 1, "_none": 1, "客户": 1, "7": 1}
    assert archived_files(tmp_path / "objects") == {
        name: [body] for name, body in tasks(*names).items()
    }


def test_what_a_dead_worker_left_is_sealed_each_by_itself(tmp_path: Path) -> None:
    settings = intake(tmp_path, **EACH)
    with SlotOwner(intake(tmp_path), 0) as slot:
        filled(slot, tasks("a", "b", "c"))
    with SlotOwner(settings, 0) as slot:
        assert slot.due() == "count"
    made = seal_unowned(settings, [0])
    assert [one.seal.messages for one in made] == [1, 1, 1]


def test_a_batch_costs_as_many_syncs_as_two_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[str] = []

    def counted(name: str, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            syncs.append(name)
            real(descriptor)

        return sync

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    monkeypatch.setattr(dividing, "syncfs", counted("syncfs", dividing.syncfs))
    found = []
    with SlotOwner(intake(tmp_path, **EACH), 0) as slot:
        for count in (2, 200):
            filled(slot, tasks(*range(count)))
            syncs.clear()
            assert len(slot.seal_divided("count")) == count
            found.append(Counter(syncs))
    assert found[0] == found[1]
    assert found[0]["syncfs"] == 1


@pytest.mark.parametrize(
    ("values", "window"),
    [
        ({}, 8000),
        ({"prefetch_count": "50", "process_count": 3}, 600),
        ({"dedup_window_messages": 5000}, 5000),
        ({"seal_each": "slot"}, 1_000_000),
    ],
)
def test_the_dedup_window_fits_slots_of_one_message(
    tmp_path: Path, values: dict[str, Any], window: int
) -> None:
    settings = intake(tmp_path, **{**EACH, **values})
    assert settings.dedup_window_messages == window
