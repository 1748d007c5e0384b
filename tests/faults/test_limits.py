"""Limits of the process: what may not be written or opened ends no worker and loses no message."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fuploader_dagster.errors import DiskFailed, DiskFull
from fuploader_dagster.loading import load_pipelines
from fuploader_dagster.slots import Slot
from fuploader_dagster.worker_status import read_statuses
from tests.drains import assert_exactly_once, backlog, files, publish, wait_for, wait_until_stored
from tests.integration.test_locales import FUPLOADER, configured
from tests.servers.small_disks import MIB
from tests.settings import intake


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_a_file_that_may_not_grow_loses_no_commit_and_says_which_limit(
    tmp_path: Path, slot_format: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    with Slot(settings, 0) as slot:
        slot.add("kept.json", b"kept")
        slot.commit()
        slot.add("large.json", bytes(2 * MIB))
        with (
            limited(resource.RLIMIT_FSIZE, MIB),
            pytest.raises(DiskFull, match=r"up to 1,048,576 bytes \(raise `ulimit -f`"),
        ):
            slot.commit()
    with Slot(settings, 0) as slot:
        assert slot.count.messages == 1
        slot.add("large.json", bytes(2 * MIB))
        slot.commit()
        assert slot.count.messages == 2


def test_too_many_open_files_are_an_error_of_ours_that_says_which_limit(tmp_path: Path) -> None:
    settings = intake(tmp_path)
    with limited(resource.RLIMIT_NOFILE, 512):
        taken: list[int] = []
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(2):
                os.close(taken.pop())
            with pytest.raises(DiskFailed, match="raise `ulimit -n`"), Slot(settings, 0) as slot:
                slot.add("a.json", b"a")
        finally:
            for descriptor in taken:
                os.close(descriptor)
    with Slot(settings, 0) as slot:
        slot.add("a.json", b"a")
        slot.commit()


def test_a_drain_that_may_not_write_long_files_takes_no_message_and_says_why(
    tmp_path: Path,
) -> None:
    settings = load_pipelines(configured(tmp_path, seal_bytes=100_000_000))["docs"]
    contents = files(300)
    publish(settings, contents)

    def drain(limit_kib: str) -> subprocess.Popen[bytes]:
        limited = ("bash", "-c", 'ulimit -f "$0"; exec "$@"', limit_kib)
        return subprocess.Popen([*limited, str(FUPLOADER), "drain"], cwd=tmp_path)

    process = drain("2048")
    try:
        wait_for(
            lambda: any(one.doing == "paused" for one in read_statuses(settings.layout)),
            settings,
            "the pause",
        )
        (status,) = read_statuses(settings.layout)
        assert "may write files of up to 2,097,152 bytes" in status.problem
        assert "LimitFSIZE" in status.problem
        assert backlog(settings) == len(contents)
    finally:
        process.terminate()
        process.wait()
    process = drain("unlimited")
    try:
        wait_until_stored(settings, contents)
        wait_for(lambda: backlog(settings) == 0, settings, "the acknowledgement")
    finally:
        process.terminate()
        process.wait()
    assert_exactly_once(settings, contents)
