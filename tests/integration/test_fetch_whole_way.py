"""Tasks of addresses become archives: the processor `fetch` in a pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fuploader_dagster import Archive, Fetch, Pipeline
from fuploader_dagster.dead_letters.letters import DeadLetter, numbered_dead_letters
from fuploader_dagster.delivery.attempts import Done, Failed, Outcome
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.slots.processed import find_processed
from tests.servers.http_handler import Call, HttpHandlerServer
from tests.servers.ports import LOOPBACK, free_port
from tests.settings import archived_files, archives_in, pipeline, sealed
from tests.unit.delivery.test_redo import content_of, redone, stored_at


async def path_as_content(call: Call) -> web.StreamResponse:
    path = call.request.path
    if path.startswith("/status/"):
        return await call.reply(int(path.removeprefix("/status/")))
    return await call.reply(200, path.encode(), ETag='"1"', Content_Type="text/plain")


@pytest.fixture
def origin() -> Iterator[HttpHandlerServer]:
    with HttpHandlerServer() as server:
        server.answer = path_as_content
        yield server


def with_fetch(folder: Path, **changes: Any) -> Pipeline:
    process = Fetch(
        **{
            "urls": "task_info",
            "allow_hosts": [LOOPBACK],
            "retry_delay_seconds": 0.01,
            "max_retries": 1,
            **changes,
        }
    )
    return pipeline(folder, process=process)


def task(origin: HttpHandlerServer, *paths: str) -> bytes:
    base = f"http://{LOOPBACK}:{origin.port}"
    files = [{"url": f"{base}/{path}", "fn": path.rpartition("/")[2]} for path in paths]
    return json.dumps({"task_info": files}).encode()


def shipped(settings: Pipeline) -> list[Outcome]:
    return list(ship(settings, settings.store.open()))


def letters(settings: Pipeline) -> list[DeadLetter]:
    return [letter for _, letter in numbered_dead_letters(settings.layout)]


def test_each_file_of_each_task_is_in_the_archive(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    settings = with_fetch(tmp_path)
    tasks = {f"t{t}": task(origin, *(f"{t}/{t}-{n}" for n in range(30))) for t in range(5)}
    sealed(settings, tasks)
    (done,) = shipped(settings)
    assert isinstance(done, Done), done
    found = archived_files(tmp_path / "objects")
    wanted = {
        f"results/{t}-{n}.txt": [f"/{t}/{t}-{n}".encode()] for t in range(5) for n in range(30)
    }
    assert {name: value for name, value in found.items() if name.startswith("results/")} == wanted
    assert letters(settings) == []
    (archive,) = archives_in(tmp_path / "objects")
    with Archive.open(archive) as opened:
        (entry,) = (m for m in opened.listing().members if m.name == "results/0-0.txt")
        assert json.loads(entry.headers)["etag"] == '"1"'


def test_what_is_missing_of_a_task_is_one_letter_that_asks_for_just_that(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    settings = with_fetch(tmp_path, min_success=0.5)
    sealed(settings, {"t": task(origin, "a", "status/404", "b", "status/410")})
    (done,) = shipped(settings)
    assert isinstance(done, Done), done
    found = archived_files(tmp_path / "objects")
    assert {name for name in found if name.startswith("results/")} == {
        "results/a.txt",
        "results/b.txt",
    }
    (letter,) = letters(settings)
    assert "the server answered 404" in letter.reason
    rest = json.loads(letter.body)["task_info"]
    assert [one["fn"] for one in rest] == ["404", "410"]


@pytest.mark.parametrize(
    ("min_success", "stored"), [("all", 0), (4, 0), (3, 3), (0.75, 3), (0.76, 0), (0, 3)]
)
def test_a_task_with_too_few_files_is_a_dead_letter(
    origin: HttpHandlerServer, tmp_path: Path, min_success: Any, stored: int
) -> None:
    settings = with_fetch(tmp_path, min_success=min_success)
    slot = sealed(settings, {"t": task(origin, "a", "b", "status/404", "c")})
    (done,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(done, Done), done
    found = find_processed(slot, settings.layout)
    assert found is not None
    assert len(found.entries()) == stored
    (letter,) = letters(settings)
    address = f"http://{LOOPBACK}:{origin.port}/status/404"
    if not stored:
        assert (
            f"1 of 4 addresses could not be fetched: the server answered 404 (1, such as {address})"
            in letter.reason
        )


def test_a_bad_task_takes_no_other_with_it(origin: HttpHandlerServer, tmp_path: Path) -> None:
    settings = with_fetch(tmp_path)
    tasks = {"bad": b"no json", "good": task(origin, "a"), "empty": b'{"task_info": []}'}
    slot = sealed(settings, tasks)
    (done,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(done, Done), done
    assert ["the task is not JSON" in letter.reason for letter in letters(settings)] == [True]


@pytest.mark.parametrize("min_success", ["all", 0])
@pytest.mark.parametrize("how", ["nobody listens", "503"])
def test_while_nobody_serves_anything_nothing_becomes_a_dead_letter(
    origin: HttpHandlerServer, tmp_path: Path, how: str, min_success: Any
) -> None:
    settings = with_fetch(tmp_path, min_success=min_success)
    port = origin.port
    if how == "503":
        origin.answer = lambda call: call.reply(503)
    else:
        port = free_port()
    body = task(origin, "a", "b").replace(str(origin.port).encode(), str(port).encode())
    slot = sealed(settings, {f"t{n}": body for n in range(20)})
    (done,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(done, Failed)
    assert "works for no item" in done.error
    assert letters(settings) == []


def test_tasks_that_need_nobody_to_answer_do_not_show_that_the_origin_works(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    settings = with_fetch(tmp_path)
    down = task(origin, "a").replace(str(origin.port).encode(), str(free_port()).encode())
    needless = {
        "malformed": b"no JSON",
        "refused": b'{"task_info": ["http://192.0.2.1/x", "ftp://x/y"]}',
        "empty": b'{"task_info": []}',
    }
    slot = sealed(settings, {**needless, **{f"t{n}": down for n in range(5)}})
    for _ in range(2):
        (failed,) = process_partitions([slot.seal.partition], settings)
        assert isinstance(failed, Failed) and failed.unavailable
        blamed = {one.item.name for one in letters(settings) if one.item is not None}
        assert blamed <= {"malformed", "refused"}


def test_what_was_fetched_before_does_not_show_that_the_origin_works(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    answers = {"/b": 404}

    async def answer(call: Call) -> web.StreamResponse:
        status = answers.get(call.request.path)
        return await (path_as_content(call) if status is None else call.reply(status))

    origin.answer = answer
    settings = with_fetch(tmp_path, min_success=1)
    partition = sealed(settings, {"t": task(origin, "a", "b")}).seal.partition
    (first,) = shipped(settings)
    assert isinstance(first, Done) and len(letters(settings)) == 1
    answers["/b"] = 503
    failed = redone(with_fetch(tmp_path), partition)  # /a is in the archive
    assert isinstance(failed, Failed) and failed.unavailable, failed
    assert len(letters(settings)) == 1
    answers.clear()
    assert isinstance(redone(with_fetch(tmp_path), partition), Done)


def test_a_dead_host_is_a_tasks_own_trouble_if_others_answer(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    settings = with_fetch(tmp_path)
    dead = task(origin, "a").replace(str(origin.port).encode(), str(free_port()).encode())
    slot = sealed(settings, {"dead": dead, **{f"t{n}": task(origin, f"{n}") for n in range(20)}})
    (done,) = process_partitions([slot.seal.partition], settings)
    if isinstance(done, Failed):  # the others were quicker than its first attempt
        (done,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(done, Done), done
    (letter,) = letters(settings)
    assert letter.item is not None
    assert letter.item.name == "dead"
    assert "could not connect" in letter.reason


def test_a_task_that_is_processed_again_fetches_only_what_its_archive_lacks(
    origin: HttpHandlerServer, tmp_path: Path
) -> None:
    missing = {"/m", "/n"}
    asked: list[str] = []

    async def some(call: Call) -> web.StreamResponse:
        asked.append(call.request.path)
        if call.request.path in missing:
            return await call.reply(404)
        return await path_as_content(call)

    origin.answer = some
    settings = with_fetch(tmp_path, min_success=0)
    files = {"one": task(origin, "a", "m", "x/a"), "two": task(origin, "b", "n")}
    partition = sealed(settings, files).seal.partition
    assert isinstance(shipped(settings)[0], Done)
    missing.remove("/m")
    asked.clear()
    outcome = redone(settings, partition)
    assert isinstance(outcome, Done), outcome
    assert sorted(asked) == ["/m", "/n"]
    assert outcome.receipt is not None
    found = content_of(stored_at(settings, outcome.receipt))
    results = {name: content for name, content in found.items() if name.startswith("results/")}
    assert results == {
        "results/a.txt": b"/a",
        "results/m.txt": b"/m",
        "results/a~2.txt": b"/x/a",
        "results/b.txt": b"/b",
    }
    again = redone(settings, partition)  # of the redo's archive
    assert isinstance(again, Done) and again.receipt is not None
    assert asked[2:] == ["/n"]
    assert content_of(stored_at(settings, again.receipt)) == found
