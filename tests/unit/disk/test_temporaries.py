"""Who is alive is what the kernel's locks say, never a process number."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fuploader_dagster.delivery.notice_files import NoticeFiles
from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.disk import durable, temporaries
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.temporaries import (
    final_name,
    is_held,
    is_temporary,
    remove_unless_held,
    temporary_file,
    temporary_folder,
)
from fuploader_dagster.intake.worker_status import StatusReport, read_statuses
from tests.settings import intake

WRITE_AND_HANG = """
import sys, time
from pathlib import Path
from fuploader_dagster.disk.temporaries import temporary_file, temporary_folder
with temporary_file(Path("file")) as file, temporary_folder(Path("folder")) as folder:
    (folder / "deep").mkdir()
    print(file, folder, flush=True)
    time.sleep(600)
"""


def test_files_of_a_live_process_are_held_and_those_of_a_killed_one_are_not(
    tmp_path: Path,
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_HANG], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        made = [tmp_path / name for name in writer.stdout.readline().split()]
        assert [final_name(path.name) for path in made] == ["file", "folder"]
        assert all(is_temporary(path.name) and is_held(path) for path in made)
        assert not any(map(remove_unless_held, made))
        assert all(path.exists() for path in made)
    finally:
        writer.kill()
        writer.wait()
    assert not any(map(is_held, made))
    assert all(map(remove_unless_held, made))
    assert list(tmp_path.iterdir()) == []
    assert not any(map(remove_unless_held, made))  # may be repeated


def test_a_writer_whose_new_file_is_removed_as_a_leftover_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Path] = []
    make = temporaries._make_file

    def make_and_lose(path: Path) -> int:
        descriptor = make(path)
        if not taken:
            taken.append(path)
            assert remove_unless_held(path)
        return descriptor

    monkeypatch.setattr(temporaries, "_make_file", make_and_lose)
    with temporary_file(tmp_path / "x") as path:
        assert path != taken[0]
        assert path.exists()


def test_a_temporary_that_is_not_renamed_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), temporary_file(tmp_path / "x"), temporary_folder(tmp_path / "y"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_gets_a_temporary_one_that_fits(tmp_path: Path) -> None:
    durable.write_durably(tmp_path / ("ü" * 127), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["ü" * 127]


def test_a_lock_whose_file_was_removed_lets_one_in_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "one.lock"
    inside: list[int] = []
    most: list[int] = []

    def enter_and_remove() -> None:
        for _ in range(30):
            lock = FileLock(path)
            lock.wait()
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.001)
            inside.pop()
            path.unlink()
            lock.release()

    threads = [threading.Thread(target=enter_and_remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_worker_in_another_container_is_alive_and_a_dead_one_is_not_whoever_has_its_number(
    tmp_path: Path,
) -> None:
    settings = intake(tmp_path)
    elsewhere, here = StatusReport(settings.layout, 0), StatusReport(settings.layout, 1)
    elsewhere.status.pid = 2**22 + 1  # more than there can be on this machine
    for report in (elsewhere, here):
        report.doing("draining")
    assert [status.worker for status in read_statuses(settings.layout)] == [0, 1]
    here._alive.release()  # as the kernel does it; its number, this process, lives on
    assert here.status.pid == os.getpid()
    assert [status.worker for status in read_statuses(settings.layout)] == [0]
    assert len(list(settings.layout.workers.iterdir())) == 2
    elsewhere.remove()
    assert list(settings.layout.workers.iterdir()) == []


def test_a_worker_says_how_it_is_whatever_the_clock_does_and_whoever_removes_its_files(
    tmp_path: Path,
) -> None:
    settings = intake(tmp_path)
    now, passed = 1_795_262_400.0, 0.0
    report = StatusReport(settings.layout, 0, clock=lambda: now, monotonic=lambda: passed)
    report.doing("draining")
    now -= 8 * 3600
    passed = 2
    report.status.messages = 100
    report.write()
    (found,) = read_statuses(settings.layout)
    assert (found.messages, found.messages_per_second) == (100, 50)
    assert found.silent_seconds() == pytest.approx(time.monotonic() - 2, abs=10)
    shutil.rmtree(settings.layout.workers)
    passed = 4
    report.write()
    assert [one.worker for one in read_statuses(settings.layout)] == [0]
    report.remove()
    assert list(settings.layout.workers.iterdir()) == []


PARTITION = "20261127T203959825Z-local-s0-000003"


@pytest.mark.parametrize(
    ("final", "listed"),
    [
        (f"notices/key/{PARTITION}.end", lambda layout: NoticeFiles(layout, "key").ends()),
        (f"sinks/rows/{PARTITION}.owed", lambda layout: SinkNotes(layout, "rows").owed()),
    ],
)
def test_what_is_being_written_is_no_file_of_another_name(
    tmp_path: Path, final: str, listed: Callable[[Layout], Sequence[str]]
) -> None:
    layout, path = Layout(tmp_path), tmp_path / final
    path.parent.mkdir(parents=True)
    with temporary_file(path) as temporary:
        assert listed(layout) == []
        temporary.replace(path)
    assert listed(layout) == [PARTITION]


def test_a_pattern_that_matches_temporary_names_is_used_in_one_place_only() -> None:
    """Files that are only appended to have no temporary names."""
    package = Path(temporaries.__file__).parents[1]
    listing = re.compile(r"\bglob\(f?[\"']\*(?![^\"']*\.jsonl)")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if listing.search(re.sub(r"\.rglob\(", "", path.read_text("utf-8")))
    }
    assert found == {"disk/setting_aside.py"}  # where anything can lie
