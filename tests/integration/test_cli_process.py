"""`fuploader process`, the stage of dead letters, and the doctor on a processor, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.test_cli import configure, fuploader
from tests.integration.test_hostile_text import HOSTILE, problems_of
from tests.settings import archived_files, archives_in, pipeline, sealed

APP = """
from fuploader_dagster import Item, Result, processor

@processor(route=r"repeat/(?P<times>[0-9]+)")
def repeat(item: Item, times: str) -> list:
    return [Result(item.content, f"{n}-{item.name}") for n in range(int(times))]

@processor
def upper(item: Item) -> bytes:
    if item.content.startswith(b"bad"):
        raise ValueError("a bad one")
    return item.content.upper()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    process = {"kind": "functions", "module": "app", "workers": 1}
    configure(tmp_path, process=process, message_format="raw")
    (tmp_path / "a.txt").write_text("some text")
    return tmp_path


def test_a_file_is_processed_without_a_queue(project: Path) -> None:
    done = fuploader(project, "process", "a.txt")
    assert (done.returncode, done.stdout) == (0, "SOME TEXT"), done.stderr
    done = fuploader(project, "process", "a.txt", "-o", "b.txt")
    assert done.returncode == 0, done.stderr
    assert (project / "b.txt").read_text() == "SOME TEXT"
    done = fuploader(project, "process", "a.txt", "--cmd", "repeat/3", "-o", "folder")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (project / "folder").iterdir()) == [
        f"{n}-a.txt" for n in range(3)
    ]
    done = fuploader(project, "process", "a.txt", "--header", "cmd=repeat/2")
    assert "0-a.txt: 9 bytes" in done.stdout
    assert not (project / "data").exists()


COPIES = """
import hashlib
from fuploader_dagster import Failure, FileResult, Partial, Processor, ProcessorSettings

class Copies(Processor):
    uses_folder = True

    async def process(self, items):
        return [self.copy(item) for item in items]

    def copy(self, item):
        path = item.folder / "copy"
        path.write_bytes(item.content)
        digest = hashlib.sha256(item.content).digest()
        file = FileResult("copy.txt", path, len(item.content), digest)
        return Partial([file], [Failure("other", "404 Not Found")], b"other")

    async def close(self):
        pass

class Settings(ProcessorSettings):
    def processor(self):
        return Copies()

    def describe(self):
        return "copies"
"""


def test_results_that_are_files_are_written_and_what_is_missing_is_named(project: Path) -> None:
    (project / "copies.py").write_text(COPIES)
    configure(project, process={"kind": "copies:Settings"}, message_format="raw")
    done = fuploader(project, "process", "a.txt", "-o", "b.txt")
    assert done.returncode == 4
    assert "no result for other: 404 Not Found" in done.stderr
    assert (project / "b.txt").read_text() == "some text"
    sealed(pipeline(project), {"task": b"a task"})
    shipped = fuploader(project, "ship")
    assert shipped.returncode == 0, shipped.stderr
    (archive,) = archives_in(project / "objects")
    listed = fuploader(project, "ls", str(archive))
    assert "results/copy.txt" in listed.stdout
    assert "1 part of items without a result" in listed.stderr
    (failure,) = json.loads(fuploader(project, "ls", "--json", str(archive)).stdout)["failures"]
    assert failure == {"item": "task", "name": "other", "reason": "404 Not Found", "detail": {}}
    again = fuploader(project, "dead-letters", "requeue", "--all", "--stage")
    assert "1 file will be processed again" in again.stdout, again.stderr
    assert fuploader(project, "ship").returncode == 0
    assert sorted(archived_files(project / "objects")["task"]) == [b"a task", b"other"]


def test_a_bad_file_and_a_bad_call_say_what_is_wrong(project: Path) -> None:
    (project / "bad.txt").write_text("bad")
    done = fuploader(project, "process", "bad.txt")
    assert done.returncode == 5
    assert "ValueError: a bad one" in done.stderr
    done = fuploader(project, "process", "a.txt", "--header", "nothing")
    assert done.returncode == 2
    assert "--header name=value" in done.stderr
    configure(project, message_format="raw")
    done = fuploader(project, "process", "a.txt")
    assert done.returncode == 2
    assert "has no processor" in done.stderr


def test_letters_of_items_show_their_stage_and_go_to_it_again(project: Path) -> None:
    sealed(pipeline(project), {"good": b"good", "bad": b"bad"})
    done = fuploader(project, "ship")
    assert done.returncode == 0, done.stderr
    (letter,) = json.loads(fuploader(project, "dead-letters", "list", "--json").stdout)
    assert (letter["stage"], letter["name"]) == ("process", "bad")
    assert "ValueError: a bad one" in letter["reason"]
    assert "1 file could not be processed" in fuploader(project, "status").stdout
    (project / "app.py").write_text(APP.replace('b"bad"', 'b"worse"'))
    again = fuploader(project, "dead-letters", "requeue", "--all", "--stage")
    assert again.returncode == 0, again.stderr
    assert "1 file will be processed again" in again.stdout
    done = fuploader(project, "ship")
    assert done.returncode == 0, done.stderr
    assert archived_files(project / "objects")["results/bad"] == [b"BAD"]
    assert json.loads(fuploader(project, "dead-letters", "list", "--json").stdout) == []


def test_the_doctor_names_routes_and_headers_that_are_not_kept(project: Path) -> None:
    found = json.loads(fuploader(project, "doctor", "--json").stdout)
    said = {one["check"]: one for one in found if one["check"] in ("processor", "headers")}
    assert said["processor"]["verdict"] == "good"
    assert "repeat/" in said["processor"]["found"]
    assert said["headers"]["verdict"] == "warning"


def test_no_word_of_a_function_commands_a_terminal(project: Path) -> None:
    (project / "app.py").write_text(
        f"""
from fuploader_dagster import Item, Result, processor

@processor
def hostile(item: Item):
    if item.name == "a.txt":
        raise ValueError({HOSTILE!r})
    return [Result(b"1", "[red]x"), Result(b"2", content_type={HOSTILE!r})]
"""
    )
    (project / "b.txt").write_text("some text")
    for arguments in (["a.txt"], ["b.txt"], ["b.txt", "-o", "out"]):
        done = fuploader(project, "process", *arguments)
        assert problems_of((done.stdout + done.stderr).encode()) == []
        assert done.returncode == 5
    (project / "app.py").write_text(APP.replace("{n}-", "[red]{n}-"))
    done = fuploader(project, "process", "a.txt", "--cmd", "repeat/2")
    assert "[red]0-a.txt: 9 bytes" in done.stdout
