"""`fuploader fetch`, as typed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from fuploader_dagster import Archive
from tests.integration.test_cli import fuploader
from tests.servers.http_handler import Call, HttpHandlerServer
from tests.servers.ports import LOOPBACK

ALLOW = ("--allow-host", LOOPBACK)


async def path_as_content(call: Call) -> web.StreamResponse:
    if call.request.path.startswith("/missing"):
        return await call.reply(404)
    return await call.reply(200, call.request.path.encode() * 1000)


@pytest.fixture
def origin() -> Iterator[HttpHandlerServer]:
    with HttpHandlerServer() as server:
        server.answer = path_as_content
        yield server


def listed(origin: HttpHandlerServer, folder: Path, *paths: str) -> None:
    lines = [f"http://{LOOPBACK}:{origin.port}/{path}" for path in paths]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")


def test_a_list_becomes_files_in_a_folder(origin: HttpHandlerServer, tmp_path: Path) -> None:
    listed(origin, tmp_path, "a.txt", "b.txt second.txt")
    done = fuploader(tmp_path, "fetch", "list.txt", "-o", "out", *ALLOW)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fetched 2 files, 11.7 KiB, into out\n"
    assert (tmp_path / "out/a.txt").read_bytes() == b"/a.txt" * 1000
    assert (tmp_path / "out/second.txt").read_bytes() == b"/b.txt" * 1000
    assert fuploader(tmp_path, "fetch", "list.txt", "-o", "out", *ALLOW).returncode == 0
    assert len(origin.calls) == 2


def test_hosts_on_this_machine_are_refused_unless_they_are_named(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    listed(origin, tmp_path, "a.txt")
    done = fuploader(tmp_path, "fetch", "list.txt", "-o", "out")
    assert done.returncode == 4
    assert "127.0.0.1 is a loopback address; allow_hosts does not name it" in done.stderr
    assert origin.calls == []


def test_what_could_not_be_fetched_is_listed_and_the_next_run_fetches_only_that(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    listed(origin, tmp_path, "a.txt", "missing.txt", "c.txt")
    done = fuploader(tmp_path, "fetch", "list.txt", "-o", "all.tar.zst", *ALLOW)
    assert done.returncode == 4
    address = f"http://{LOOPBACK}:{origin.port}/missing.txt"
    assert f"not fetched: address 2, {address}: the server answered 404" in done.stderr
    with Archive.open(tmp_path / "all.tar.zst") as archive:
        assert [member.name for member in archive.listing().members] == ["a.txt", "c.txt"]
    origin.answer = lambda call: call.reply(200, b"now")
    done = fuploader(tmp_path, "fetch", "list.txt", "-o", "all.tar.zst", *ALLOW)
    assert done.returncode == 0, done.stderr
    assert len(origin.calls) == 4
    with Archive.open(tmp_path / "all.tar.zst") as archive:
        assert archive.read("missing.txt") == b"now"
        assert archive.read("c.txt") == b"/c.txt" * 1000
    assert [path.name for path in tmp_path.iterdir() if "fetch" in path.name] == []
    again = fuploader(tmp_path, "fetch", "list.txt", "-o", "all.tar.zst", *ALLOW)
    assert again.returncode == 4
    assert "exists already" in again.stderr


def test_the_zip_opens_and_json_tells_all(origin: HttpHandlerServer, tmp_path: Path) -> None:
    listed(origin, tmp_path, "a.txt", "b/a.txt", "missing")
    done = fuploader(tmp_path, "fetch", "list.txt", "-o", "all.zip", "--json", *ALLOW)
    assert done.returncode == 4
    told = json.loads(done.stdout)
    assert [one["name"] for one in told["fetched"]] == ["a.txt", "a.txt"]
    assert told["fetched"][0]["sha256"] == hashlib.sha256(b"/a.txt" * 1000).hexdigest()
    assert [one["status"] for one in told["missed"]] == [404]
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", "all.zip"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "a.txt " in listing
    assert "a~2.txt " in listing


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["list.txt", "--allow-host", "http://x/"], 2, "--allow-host"),
        (["list.txt", "-o", "x.parquet"], 2, "use .tar.zst or .zip"),
        (["nothing.txt"], 4, "nothing.txt"),
        (["list.txt", "--urls", "a"], 5, "the task is not JSON"),
    ],
)
def test_bad_calls_say_what_is_wrong(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "list.txt").write_text("http://127.0.0.1/x\n")
    done = fuploader(tmp_path, "fetch", *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


COMMAND = [sys.executable, "-m", "fuploader_dagster.cli.app", "fetch", "list.txt", *ALLOW]
PATIENCE_SECONDS = 120


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_calls(origin: HttpHandlerServer, number: int, one: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(origin.calls) < number and one.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("output", ["out", "new/all.tar.zst"])
@pytest.mark.parametrize("kill_at", [1, 40, 90])
def test_a_command_that_is_killed_is_finished_by_the_next_one(
    origin: HttpHandlerServer, tmp_path: Path, output: str, kill_at: int
) -> None:
    listed(origin, tmp_path, *(f"{n}/same.txt" for n in range(100)))
    killed = started(tmp_path, "-o", output)
    try:
        wait_for_calls(origin, kill_at, killed)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    done = fuploader(tmp_path, "fetch", "list.txt", *ALLOW, "-o", output)
    assert done.returncode == 0, done.stderr
    if output == "out":
        found = [p.read_bytes() for p in (tmp_path / output).iterdir() if p.is_file()]
    else:
        with Archive.open(tmp_path / output) as archive:
            found = [archive.read(one.name) for one in archive.listing().members]
    assert sorted(found) == sorted(f"/{n}/same.txt".encode() * 1000 for n in range(100))


def test_ctrl_c_ends_the_command_and_what_came_stays(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    async def answer(call: Call) -> web.StreamResponse:
        return await (call.nothing() if call.request.path == "/hangs" else path_as_content(call))

    origin.answer = answer
    listed(origin, tmp_path, "a.txt", "hangs")
    one = started(tmp_path, "-o", "out")
    wait_for_calls(origin, 2, one)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (tmp_path / "out/a.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one.send_signal(signal.SIGINT)
    _, complaints = one.communicate(timeout=PATIENCE_SECONDS)
    assert one.returncode == 130, complaints  # as shells say: ended by SIGINT
    assert "Traceback" not in complaints
    origin.answer = path_as_content
    assert fuploader(tmp_path, "fetch", "list.txt", *ALLOW, "-o", "out").returncode == 0
    assert [call.request.path for call in origin.calls] == ["/a.txt", "/hangs", "/hangs"]
