"""What was acknowledged is found wherever it is, and missed when somebody removes it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from fuploader_dagster.contracts.state import Commit, SlotCount, Snapshot
from fuploader_dagster.delivery.mend import mend
from fuploader_dagster.disk.layout import utc
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.health.balance import SETTLED_AFTER, Balance, balance, tidy
from fuploader_dagster.health.figures import figures_of, sealed_now
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from fuploader_dagster.slots.seal_log import log_files, read_log
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import sealed
from tests.unit.health.test_figures import embedded, ship

FILES = {f"{n}.json": b'{"tenant": "t%d"}' % (n % 3) for n in range(30)}


def looked(settings: Pipeline, counts: tuple[SlotCount, ...] = ()) -> Balance:
    return balance(settings.layout, Snapshot(counts))


@contextmanager
def growing(settings: Intake, slot: int = 0) -> Iterator[SlotCount]:
    """An active directory with messages, and what the state store knows of it."""
    with SlotOwner(settings, slot) as owner:
        for name, content in FILES.items():
            owner.add(name, content)
        owner.commit()
        yield owner.count


def test_slots_are_counted_by_day_wherever_they_are_on_their_way(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    old, new = sealed(settings, FILES, seconds_ago=3 * 86_400), sealed(settings, FILES)
    ship(settings, [old.seal.partition])
    with growing(settings, 1) as count:
        found = looked(settings, (count,))
    assert not found.lost
    assert found.active_messages == 30
    assert [day.messages for day in found.days.values()] == [30, 30]
    assert found.days[old.seal.partition[:8]].places["stored"] == 30
    assert found.days[new.seal.partition[:8]].places["waiting"] == 30


@pytest.mark.parametrize("harm", ["removed", "moved away"])
def test_a_sealed_slot_that_somebody_removes_is_missed(tmp_path: Path, harm: str) -> None:
    settings = embedded(tmp_path)
    lost, kept = sealed(settings, FILES), sealed(settings, FILES)
    if harm == "removed":
        shutil.rmtree(lost.directory)
    else:
        lost.directory.rename(tmp_path / "somewhere")
    (one,) = looked(settings).lost
    assert (one.what, one.messages) == (f"slot {lost.seal.partition}", 30)
    assert looked(settings).total("waiting") == 30
    ship(settings, [kept.seal.partition])
    tidy(settings.layout, [], now=time.time() + 86_400)  # nothing forgets it
    assert len(looked(settings).lost) == 1


def test_an_active_directory_that_vanishes_or_shrinks_is_missed(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    with growing(settings) as count:
        directory = settings.layout.active(0, count.number)
    assert not looked(settings, (count,)).lost
    segment = directory / "segment.tar"
    content = segment.read_bytes()
    segment.write_bytes(content[: count.size_bytes - 1])
    assert [one.messages for one in looked(settings, (count,)).lost] == [30]
    shutil.rmtree(directory)
    (one,) = looked(settings, (count,)).lost
    assert one.what == f"active slot 0, directory {count.number}"
    shutil.rmtree(settings.layout.root)  # a new disk in place of the old one
    assert looked(settings, (count,)).lost


def test_a_count_that_a_killed_worker_left_behind_is_no_loss(tmp_path: Path) -> None:
    """It was killed after a seal, before the state store knew of it; it may be stored by now."""
    settings = embedded(tmp_path)
    with growing(settings) as count:
        assert count.messages == 30
    with SlotOwner(settings, 0) as owner:
        slot = owner.seal("request")
    assert slot is not None
    assert not looked(settings, (count,)).lost
    ship(settings, [slot.seal.partition])
    assert not looked(settings, (count,)).lost
    tidy(settings.layout, [], now=time.time() + 86_400)
    assert not log_files(settings.layout)
    assert not looked(settings, (count,)).lost


def test_a_divided_directory_is_its_pieces(tmp_path: Path) -> None:
    settings = embedded(
        tmp_path, split_by=["tenant"], message_format="json", key="{tenant}/{archive}"
    )
    with growing(settings) as count:
        assert count.messages == 30
    with SlotOwner(settings, 0) as owner:
        pieces = owner.seal_divided("request")
    assert len(pieces) == 3
    found = looked(settings, (count,))
    assert not found.lost
    assert (found.sealed_messages, found.total("waiting")) == (30, 30)
    shutil.rmtree(pieces[1].directory)
    assert [one.messages for one in looked(settings).lost] == [10]


def test_damaged_slots_are_replaced_or_aside_and_not_lost(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    damaged, foreign = sealed(settings, FILES), sealed(settings, FILES)
    content = bytearray(damaged.segment.read_bytes())
    content[700] ^= 1
    damaged.segment.write_bytes(content)
    mend(0, damaged.seal.number, DamagedSlot("its bytes changed"), settings.intake())
    set_aside(foreign.directory, settings.layout)
    found = looked(settings)
    assert not found.lost
    assert (found.total("replaced"), found.total("aside")) == (30, 30)


def test_the_log_goes_when_all_is_stored_and_is_made_again_where_it_lacks_something(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    slots = [sealed(settings, FILES, seconds_ago=seconds) for seconds in (90_000, 90_000, 0)]
    shutil.rmtree(settings.layout.seal_log)
    tidy(settings.layout, sealed_now(settings.layout))
    assert looked(settings).total("waiting") == 90
    ship(settings, [slots[0].seal.partition, slots[2].seal.partition])
    tidy(settings.layout, sealed_now(settings.layout))
    assert looked(settings).sealed_messages == 90  # one of that hour waits; the newest is young
    ship(settings, [slots[1].seal.partition])
    tidy(settings.layout, sealed_now(settings.layout))
    assert looked(settings).sealed_messages == 30
    soon = utc(time.time()) + SETTLED_AFTER + timedelta(hours=2)
    tidy(settings.layout, sealed_now(settings.layout), now=soon.timestamp())
    assert log_files(settings.layout) == []


def test_what_is_not_ours_in_the_log_says_nothing(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    slot = sealed(settings, FILES)
    (path,) = log_files(settings.layout)
    with path.open("ab") as file:
        file.write(b'{"partition": "x", "messages": 3}\n{"part\xff\n[]\n\n{"torn')
    assert read_log(path).keys() == {slot.seal.partition}
    (settings.layout.seal_log / "other.jsonl").symlink_to("/dev/zero")
    assert not looked(settings).lost


def test_a_log_that_cannot_be_written_holds_up_no_seal(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    settings.layout.root.mkdir(parents=True)
    settings.layout.seal_log.write_text("a file")
    slot = sealed(settings, FILES)
    assert slot.directory.is_dir()
    assert not looked(settings).lost


def test_the_state_stores_counts_are_those_of_the_figures(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    with growing(settings) as count:
        directory = settings.layout.active(0, count.number)
    with closing(settings.state.store(pipeline=settings.name, node=settings.node)) as state:
        state.open()
        state.claim([0], "root", 30)
        state.record(Commit([count], stored_messages=30), root_id="root", ttl_seconds=30)
    assert not balance(settings.layout, figures_of(settings).snapshot).lost
    shutil.rmtree(directory)
    assert balance(settings.layout, figures_of(settings).snapshot).lost
