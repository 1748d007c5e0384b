"""The processor of a pipeline over HTTP: one file at once, with its limits."""

from __future__ import annotations

import email
import email.policy
import json
import os
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.fetching.settings import Fetch
from fuploader_dagster.processing.functions import Functions
from fuploader_dagster.settings.pipeline import Pipeline
from tests.processors_for_tests import Script, ScriptWithFolders, script
from tests.servers.front_door import TOKEN, Answered, FrontDoor, front_door
from tests.servers.odd_server import OddRequest, OddServer
from tests.servers.ports import LOOPBACK
from tests.servers.process import children_of
from tests.settings import pipeline


def made(folder: Path, process: ProcessorSettings | None, **serve: Any) -> Pipeline:
    return pipeline(folder, process=process, serve=serve or True)


def post(door: FrontDoor, path: str = "/docs/process", **steps: Any) -> Answered:
    return door.ask("POST", path, script(**steps))


def parts(answer: Answered) -> list[EmailMessage]:
    """The parts of a multipart answer, as Python's own parser reads them."""
    head = f"content-type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.body, policy=email.policy.HTTP)
    assert message.is_multipart()
    assert not message.defects
    return [part for part in message.iter_parts() if isinstance(part, EmailMessage)]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[FrontDoor]:
    with front_door(made(tmp_path, Script(max_result_bytes=1000, max_retries=0))) as door:
        yield door


def test_one_result_is_the_answer_and_none_is_no_content(
    scripted: FrontDoor, tmp_path: Path
) -> None:
    answer = post(scripted, "/docs/process?name=a.txt", kind="text/html", name="b.html")
    assert (answer.status, answer.body) == (200, b"a.txt-0")
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["content-length"] == "7"
    assert 'filename="b.html"' in answer.headers["content-disposition"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    nothing = post(scripted, results=0)
    assert (nothing.status, nothing.body) == (204, b"")
    assert not (tmp_path / "data").exists()


def test_several_results_are_parts_of_one_answer(scripted: FrontDoor) -> None:
    answer = post(scripted, "/docs/process?name=x", results=3, name='é"1.bin', kind="image/png")
    assert answer.status == 200
    found = parts(answer)
    assert [part.get_content() for part in found] == [b"x-0", b"x-1", b"x-2"]
    assert {part.get_content_type() for part in found} == {"image/png"}
    assert {part.get_param("name", header="content-disposition") for part in found} == {"result"}
    assert "é%221.bin".encode() in answer.body


def test_what_is_wrong_with_the_file_and_what_may_pass_are_told_apart(scripted: FrontDoor) -> None:
    for steps in ({"bad": "no"}, {"poison": "no"}, {"raise": "no"}, {"times": 1000}):
        answer = post(scripted, **steps)
        assert answer.status == 422
        assert answer.json()["error"]
        assert b"Traceback" not in answer.body
    later = post(scripted, "/docs/process?name=later", retries=1)
    assert (later.status, later.headers["retry-after"]) == (503, "5")
    assert post(scripted, "/docs/process?name=later", retries=1).status == 200
    stopped = post(scripted, "/docs/process?name=stop", stop=True)
    assert (stopped.status, stopped.json()["error"]) == (500, "stopped")


@pytest.mark.parametrize("name", ["..", "a%2fb", "a%00b", "x" * 300, "a%5cb", "%0d%0a"])
def test_a_name_that_no_file_can_have_is_refused(scripted: FrontDoor, name: str) -> None:
    answer = post(scripted, f"/docs/process?name={name}")
    assert answer.status == 400
    assert "file name" in answer.json()["error"]


def test_only_who_may_process_does_and_only_where_there_is_a_processor(tmp_path: Path) -> None:
    settings = made(tmp_path, Script(), publish_token={"env": "P"}, process_token={"env": "X"})
    bare = made(tmp_path / "bare", None).model_copy(update={"name": "bare"})
    tokens = {"P": TOKEN, "X": "process-long-token", "FUPLOADER_SERVE_TOKEN": "master-long-token"}
    with front_door(settings, bare, environment=tokens) as door:
        body = script()
        assert door.ask("POST", "/docs/process", body, token=None).status == 401
        assert door.ask("POST", "/docs/process", body).status == 403
        assert door.ask("POST", "/docs/process", body, token="process-long-token").status == 200
        answer = door.ask("POST", "/bare/process", body, token="master-long-token")
        assert answer.status == 404
        assert "has no processor" in answer.json()["error"]
        assert door.ask("GET", "/docs/process", token="master-long-token").status == 405


def test_results_that_are_files_are_sent_and_what_is_missing_is_named(tmp_path: Path) -> None:
    with front_door(made(tmp_path, ScriptWithFolders())) as door:
        large = post(door, "/docs/process?name=n", files=["r.bin"], times=1_000_000)
        assert (large.status, large.body) == (200, b"n r.bin " * 1_000_000)
        some = parts(post(door, "/docs/process?name=n", files=["r.bin"], missing=["s.bin"]))
        assert some[0].get_content() == "n r.bin "
        assert some[0].get_filename() == "r.bin"
        (failure,) = json.loads(some[1].get_content())
        assert (failure["name"], failure["reason"]) == ("s.bin", "404")
        assert some[1].get_param("name", header="content-disposition") == "failures"


def test_functions_in_child_processes_stay_open_and_routes_are_chosen(tmp_path: Path) -> None:
    functions = Functions(module="tests.functions_for_tests", workers=1)
    others = children_of("self")  # servers of other tests
    with front_door(made(tmp_path, functions)) as door:
        assert door.ask("POST", "/docs/process", b"echo").body == b"echo"
        children = children_of("self") - others
        assert children
        for command in ("", "?cmd=async"):
            assert door.ask("POST", f"/docs/process{command}", b"echo 2").body == b"echo 2"
            kind = door.ask(
                "POST",
                f"/docs/process{command}",
                b"header content-type",
                {"content-type": "text/x-own"},
            )
            assert b"text/x-own" in kind.body
        assert children_of("self") - others == children
        assert door.ask("POST", "/docs/process", b"retry").headers["retry-after"] == "3"
        keys = {door.ask("POST", "/docs/process", b"key").body for _ in range(2)}
        assert len(keys) == 2
        threads = [
            threading.Thread(target=door.ask, args=("POST", "/docs/process", b"echo"))
            for _ in range(8)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert not children_of("self") & children


def _serve(request: OddRequest) -> None:
    """A server with files."""
    if request.path == "/a.json":
        request.reply(200, script(), Content_Type="application/x-own")
    elif request.path == "/large":
        request.reply(200, b"x" * 3000)
    elif request.path == "/away":
        request.reply(302, Location="http://169.254.169.254/secret")
    elif request.path == "/busy":
        request.reply(503)
    else:
        request.reply(404)


def test_an_address_is_fetched_only_from_where_it_may_be(tmp_path: Path) -> None:
    with OddServer() as files:
        files.answer = _serve
        address = f"http://{LOOPBACK}:{files.port}"
        opened = made(tmp_path, Script(), fetch_hosts=[LOOPBACK], max_body_bytes=2000)
        with front_door(opened) as door:
            answer = door.ask("POST", f"/docs/process?url={address}/a.json&cmd=x")
            assert (answer.status, answer.body) == (200, b"a.json-0")
            for path in ("/missing", "/large", "/away"):
                answer = door.ask("POST", f"/docs/process?url={address}{path}")
                assert answer.status == 422, (path, answer)
                assert "fetch_hosts" in answer.json()["hint"]
            assert door.ask("POST", f"/docs/process?url={address}/busy").status == 503
            both = door.ask("POST", f"/docs/process?url={address}/a.json", b"body")
            assert both.status == 400
            for odd in ("file:///etc/passwd", "", "http://[", "ftp://a/b", "%20", "http://a%0ab/"):
                answer = door.ask("POST", f"/docs/process?url={odd}")
                assert answer.status == 422, (odd, answer)
                assert b"root:" not in answer.body
        with front_door(made(tmp_path, Script())) as door:
            asked = len(files.requests)
            answer = door.ask("POST", f"/docs/process?url={address}/a.json")
            assert answer.status == 422
            assert "loopback address" in answer.json()["error"]
            assert len(files.requests) == asked


@pytest.mark.parametrize("urls", [None, "job.files"])
def test_a_pipeline_of_downloads_takes_an_address_as_its_task(
    tmp_path: Path, urls: str | None
) -> None:
    with OddServer() as files:
        files.answer = _serve
        address = f"http://{LOOPBACK}:{files.port}/large"
        process = Fetch(urls=urls, allow_hosts=[LOOPBACK], max_retries=0)
        with front_door(made(tmp_path, process)) as door:
            answer = door.ask("POST", f"/docs/process?url={address}")
            assert (answer.status, answer.body) == (200, b"x" * 3000)
            answer = door.ask("POST", f"/docs/process?url={address}/missing")
            assert answer.status == 422
        if urls is None:
            with front_door(made(tmp_path, process)) as door:
                answer = door.ask("POST", f"/docs/process?url={address}%0a{address}")
                assert answer.status == 400
    template = Fetch(url="https://host/{id}.jpg")
    with front_door(made(tmp_path, template)) as door:
        assert "made of fields" in door.ask("POST", "/docs/process?url=x").json()["error"]


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path))
    with front_door(made(tmp_path, ScriptWithFolders())) as door:
        assert post(door, files=["r.bin"]).status == 200
        assert post(door, bad="no").status == 422
    assert not list(tmp_path.glob("fuploader-process-*"))
