"""Downloads whose process is killed, and downloads onto a disk that fills."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.errors import DiskFull
from fuploader_dagster.fetching.addresses import Address
from fuploader_dagster.fetching.task_folder import keys_of
from tests.fetches import contents, fetch
from tests.integration.test_fetch_downloads import serve_with_ranges
from tests.integration.test_fetch_whole_way import letters, shipped, task, with_fetch
from tests.servers.http_handler import Call, HttpHandlerServer
from tests.servers.ports import LOOPBACK
from tests.servers.small_disks import MIB, enlarge, small_disk
from tests.settings import archived_files, sealed

BODY = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(320_000))  # 10 MB
PATIENCE_SECONDS = 120
PROGRAM = """
import sys
from pathlib import Path
from tests.fetches import fetch
fetch(sys.argv[2:], Path(sys.argv[1]))
"""
PROCESSING = """
import sys
from pathlib import Path
from fuploader_dagster.delivery.process import process_partitions
from tests.integration.test_fetch_whole_way import with_fetch
list(process_partitions(sys.argv[2:], with_fetch(Path(sys.argv[1]))))
"""


@pytest.fixture
def origin() -> Iterator[HttpHandlerServer]:
    with HttpHandlerServer() as server:
        yield server


def urls(origin: HttpHandlerServer, number: int) -> list[str]:
    return [f"http://{LOOPBACK}:{origin.port}/{i}" for i in range(number)]


def wait_until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("parts/*.part"))


def test_after_kill_9_only_what_is_missing_is_fetched(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    """Five files hang after 6 to 10 MB, the process is killed, and the next one goes on."""
    sent: list[int] = []

    async def hang(call: Call) -> web.StreamResponse:
        number = int(call.request.path[1:])
        most = 6_000_000 + number * 1_000_000
        head = f'HTTP/1.1 200 OK\r\nETag: "v1"\r\nContent-Length: {len(BODY)}\r\n\r\n'
        return await call.reply_raw(head.encode() + BODY[:most], end=False)

    async def count(call: Call) -> web.StreamResponse:
        response = await serve_with_ranges(call, BODY, '"v1"')
        assert isinstance(response, web.Response)
        assert isinstance(response.body, bytes)
        sent.append(len(response.body))
        return response

    origin.answer = hang
    killed = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), *urls(origin, 5)])
    try:
        everything = sum(6_000_000 + n * 1_000_000 for n in range(5))
        wait_until(lambda: bytes_in(tmp_path) == everything, "all that was sent is in the files")
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    origin.answer = count
    outcome = fetch(urls(origin, 5), tmp_path)
    assert list(contents(outcome, tmp_path).values()) == [BODY] * 5
    assert sum(sent) == 5 * len(BODY) - everything
    fetch(urls(origin, 5), tmp_path)
    assert len(sent) == 5


@pytest.mark.parametrize("kill_at", [0, 20, 40])
def test_a_task_that_is_killed_anywhere_ends_as_one_that_was_not(
    origin: HttpHandlerServer, tmp_path: Path, kill_at: int
) -> None:
    async def answer(call: Call) -> web.StreamResponse:
        return await call.reply(200, (call.request.path * 5000).encode())

    origin.answer = answer
    killed = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), *urls(origin, 60)])
    try:
        wait_until(lambda: len(origin.calls) > kill_at or killed.poll() is not None, "downloads")
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    outcome = fetch(urls(origin, 60), tmp_path)
    assert {name: value.decode() for name, value in contents(outcome, tmp_path).items()} == {
        str(i): f"/{i}" * 5000 for i in range(60)
    }
    assert len(list((tmp_path / "files").iterdir())) == 60
    assert not [path for path in (tmp_path / "parts").iterdir() if path.suffix == ".json"]


def test_a_part_from_before_a_power_cut_is_not_trusted(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: serve_with_ranges(call, BODY, '"v1"')
    fetch(urls(origin, 0), tmp_path)
    (key,) = keys_of([Address(urls(origin, 1)[0])])
    (tmp_path / "parts" / f"{key}.part").write_bytes(bytes(5_000_000))
    record = f'{{"validator": "\\\\"v1\\\\"", "total_bytes": {len(BODY)}, "boot": "another"}}'
    (tmp_path / "parts" / f"{key}.json").write_text(record)
    outcome = fetch(urls(origin, 1), tmp_path)
    assert contents(outcome, tmp_path) == {"0": BODY}
    assert "Range" not in origin.calls[0].headers


def test_a_finished_file_that_rotted_is_fetched_again(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: serve_with_ranges(call, BODY, '"v1"')
    (one,) = fetch(urls(origin, 1), tmp_path).fetched
    with (tmp_path / "files" / one.file.file).open("r+b") as file:
        file.seek(5000)
        file.write(b"#")
    log = tmp_path / "done.jsonl"
    log.write_bytes(log.read_bytes() + b'{"key": "torn')
    assert contents(fetch(urls(origin, 1), tmp_path), tmp_path) == {"0": BODY}
    assert contents(fetch(urls(origin, 1), tmp_path), tmp_path) == {"0": BODY}
    assert len(origin.calls) == 2


def test_a_full_disk_ends_the_task_and_the_next_attempt_goes_on(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: serve_with_ranges(call, BODY, '"v1"')
    with small_disk(tmp_path / "disk", size_bytes=26 * MIB) as disk:
        with pytest.raises(DiskFull, match="no space left while writing"):
            fetch(urls(origin, 4), disk / "task")
        there = bytes_in(disk / "task") + sum(
            path.stat().st_size for path in (disk / "task/files").iterdir()
        )
        assert there > 20_000_000
        enlarge(disk, size_bytes=80 * MIB)
        origin.calls.clear()
        outcome = fetch(urls(origin, 4), disk / "task")
        assert list(contents(outcome, disk / "task").values()) == [BODY] * 4
        assert all("Range" in call.headers for call in origin.calls)


def test_a_slot_of_tasks_that_is_killed_again_and_again_ends_as_one_that_was_not(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    """What was fetched before a kill is not fetched again, and nothing is there twice."""
    origin.answer = lambda call: call.reply(200, (call.request.path * 4000).encode())
    settings = with_fetch(tmp_path)
    tasks = {f"t{t}": task(origin, *(f"{t}/{t}-{n}" for n in range(40))) for t in range(4)}
    partition = sealed(settings, tasks).seal.partition
    command = [sys.executable, "-c", PROCESSING, str(tmp_path), partition]
    for kill_at in (10, 60, 130):
        killed = subprocess.Popen(command)
        try:
            wait_until(
                lambda at=kill_at, one=killed: len(origin.calls) >= at or one.poll() is not None,
                "downloads",
            )
        finally:
            killed.send_signal(signal.SIGKILL)
            killed.wait()
    (done,) = shipped(settings)
    assert isinstance(done, Done), done
    found = archived_files(tmp_path / "objects")
    results = {name: value for name, value in found.items() if name.startswith("results/")}
    assert results == {
        f"results/{t}-{n}": [f"/{t}/{t}-{n}".encode() * 4000] for t in range(4) for n in range(40)
    }
    assert letters(settings) == []
    assert len(origin.calls) <= 160 + 3 * 64  # in work at the kills


def test_a_disk_that_fills_while_tasks_are_processed_costs_no_task(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    origin.answer = lambda call: call.reply(200, BODY[:1_000_000], ETag='"v1"')
    with small_disk(tmp_path / "disk", size_bytes=12 * MIB) as disk:
        settings = with_fetch(disk).model_copy(update={"store": with_fetch(tmp_path).store})
        tasks = {f"t{t}": task(origin, *(f"{t}/{t}-{n}" for n in range(10))) for t in range(3)}
        partition = sealed(settings, tasks).seal.partition
        (failed,) = process_partitions([partition], settings)
        assert isinstance(failed, Failed)
        assert "no space left" in failed.error
        assert not failed.permanent
        enlarge(disk, size_bytes=200 * MIB)
        (done,) = process_partitions([partition], settings)
        assert isinstance(done, Done), done
        assert done.processed is not None
        assert (done.processed.results, done.processed.failed) == (30, 0)
        assert letters(settings) == []
