"""Where a message is, and its file, over HTTP."""

from __future__ import annotations

import hashlib
import http.client
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.dead_letters.letters import DeadLetterBox, note_requeued
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.front.file_answers import OCTETS, safe_type
from fuploader_dagster.lookup.files import SMALL_BYTES
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.slot import SlotOwner
from tests.processors_for_tests import ScriptWithFolders, script
from tests.servers.front_door import TOKEN, FrontDoor, front_door
from tests.servers.ports import wait_until
from tests.settings import pipeline, sealed

LARGE = bytes(range(256)) * (SMALL_BYTES // 256 + 5000)
TRICKS = [
    "..",
    "../../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%2fetc%2fpasswd",
    "a%00.json",
    "%00",
    "%ff%fe",
    "x" * 4096,
    "%E6%B6%88",
    "a.json%0d%0aset-cookie:x",
    "index",
    "",
]


def made(folder: Path, **values: Any) -> Pipeline:
    return pipeline(folder, serve=True, **values)


@pytest.fixture
def settings(tmp_path: Path) -> Pipeline:
    return made(tmp_path)


@pytest.fixture
def door(settings: Pipeline) -> Iterator[FrontDoor]:
    with front_door(settings) as one:
        yield one


def shipped(settings: Pipeline) -> None:
    for outcome in ship(settings, settings.store.open()):
        assert isinstance(outcome, Done), outcome


def test_a_message_is_followed_over_http(settings: Pipeline, door: FrontDoor) -> None:
    unknown = door.ask("GET", "/docs/messages/a.json")
    assert unknown.status == 404
    assert unknown.json()["state"] == "unknown"
    assert "wait in the queue" in unknown.json()["hint"]
    states = []
    with SlotOwner(settings, 0) as writer:
        writer.add("a.json", b"1")
        writer.commit()
        states.append(door.ask("GET", "/docs/messages/a.json").json()["state"])
        writer.seal("request")
    states.append(door.ask("GET", "/docs/messages/a.json").json()["state"])
    shipped(settings)
    answer = door.ask("GET", "/docs/messages/a.json")
    states.append(answer.json()["state"])
    assert states == ["active", "sealed", "stored"]
    (copy,) = answer.json()["copies"]
    assert copy["address"].startswith("file://")
    assert copy["member"] == "a.json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_dead_letter_is_told_with_its_reason_until_it_was_sent_back(
    settings: Pipeline, door: FrontDoor
) -> None:
    box = DeadLetterBox(settings.layout, 0)
    box.keep([box.letter(Message(b"x", 1, False, "id 1"), BadMessage("no <b>"), lambda _: {})])
    answer = door.ask("GET", "/docs/messages/id%201").json()
    assert (answer["state"], answer["dead_letters"][0]["reason"]) == ("dead letter", "no <b>")
    note_requeued(settings.layout, [answer["dead_letters"][0]["id"]])
    assert door.ask("GET", "/docs/messages/id%201").json()["state"] == "sent back"


def test_only_who_may_read_is_told(settings: Pipeline, door: FrontDoor) -> None:
    sealed(settings, {"a.json": b"1"})
    for path in ("/docs/messages/a.json", "/docs/files/a.json"):
        assert door.ask("GET", path).status == 200
        assert door.ask("GET", path, token=None).status == 401
        assert door.ask("GET", path, token="f" * 20).status == 401
    serve = {"publish_token": {"env": "P"}, "read_token": {"env": "R"}}
    limited = settings.model_copy(update={"serve": type(settings.serve).model_validate(serve)})
    with front_door(limited, environment={"P": TOKEN, "R": "another-long-token"}) as other:
        for path in ("/docs/messages/a.json", "/docs/files/a.json"):
            assert other.ask("GET", path).status == 403
            assert other.ask("GET", path, token="another-long-token").status == 200


@pytest.mark.parametrize("trick", TRICKS)
def test_path_tricks_are_names_that_nobody_has(
    settings: Pipeline, door: FrontDoor, trick: str
) -> None:
    sealed(settings, {"a.json": b"1"})
    shipped(settings)
    sealed(settings, {"b.json": b"1"})
    for kind in ("messages", "files"):
        answer = door.ask("GET", f"/docs/{kind}/{trick}")
        assert answer.status == 404, answer
        assert set(answer.json()) >= {"error", "hint"}
        assert b"root:" not in answer.body
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("name", ["消息 1.json", "a%2fb.json", "[1]*?.json", "a;b&c=d#e.json"])
def test_odd_names_are_found_when_they_are_quoted(
    settings: Pipeline, door: FrontDoor, name: str
) -> None:
    sealed(settings, {name: b"odd", "a.json": b"1"})
    for _ in range(2):
        answer = door.ask("GET", f"/docs/messages/{quote(name, safe='')}").json()
        assert [copy["name"] for copy in answer["copies"]] == [name]
        file = door.ask("GET", f"/docs/files/{quote(name, safe='')}")
        assert (file.status, file.body) == (200, b"odd")
        assert quote(name, safe="") in file.headers["content-disposition"]
        shipped(settings)


def test_a_file_is_to_be_saved_and_never_run(tmp_path: Path) -> None:
    settings = made(tmp_path, headers=["content_type"])
    kinds = {
        "a.json": ("", "application/json"),
        "b.html": ("", OCTETS),
        "c": ("text/html", OCTETS),
        "d": ("Image/PNG; x=y", "image/png"),
        "e.svg": ("image/svg+xml", OCTETS),
        "f.txt": ("no type\r\nx: y", "text/plain"),
    }
    with SlotOwner(settings, 0) as writer:
        for name, (kind, _) in kinds.items():
            writer.add(name, b"<script>", to_text({"content_type": kind} if kind else {}))
        writer.seal("request")
    with front_door(settings) as door:
        for _ in range(2):
            for name, (_, wanted) in kinds.items():
                answer = door.ask("GET", f"/docs/files/{name}")
                assert answer.headers["content-type"] == wanted
                assert answer.headers["content-disposition"].startswith("attachment;")
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert "sandbox" in answer.headers["content-security-policy"]
            shipped(settings)
    assert safe_type("", "x.unknown-ending") == OCTETS


@pytest.mark.parametrize("stored", [False, True])
def test_large_files_and_ranges_of_them_are_exact(tmp_path: Path, stored: bool) -> None:
    settings = made(tmp_path)
    sealed(settings, {"large.bin": LARGE, "empty": b""})
    if stored:
        shipped(settings)
    with front_door(settings) as door:
        answer = door.ask("GET", "/docs/files/large.bin")
        assert (answer.status, answer.body) == (200, LARGE)
        etag = answer.headers["etag"]
        assert etag == f'"{hashlib.sha256(LARGE).hexdigest()[:32]}"'
        head = door.ask("HEAD", "/docs/files/large.bin")
        assert (head.status, head.body, head.headers["content-length"]) == (
            200,
            b"",
            str(len(LARGE)),
        )
        ranges = {
            "bytes=0-0": LARGE[:1],
            "bytes=5-1000004": LARGE[5:1000005],
            f"bytes={len(LARGE) - 3}-": LARGE[-3:],
            "bytes=-7": LARGE[-7:],
            f"bytes=-{10 * len(LARGE)}": LARGE,
            f"bytes=4194300-{10 * len(LARGE)}": LARGE[4194300:],
        }
        for asked, wanted in ranges.items():
            part = door.ask("GET", "/docs/files/large.bin", headers={"range": asked})
            assert (part.status, part.body) == (206, wanted), asked
            start = len(LARGE) - len(wanted) if asked.startswith("bytes=-") else None
            assert part.headers["content-range"].endswith(f"/{len(LARGE)}")
            assert start is None or f"bytes {start}-" in part.headers["content-range"]
        for odd in ("bytes=9-2", "bytes=-", "lines=1-2", "bytes=1-2,5-6", "bytes=x", "bytes=1-2-3"):
            part = door.ask("GET", "/docs/files/large.bin", headers={"range": odd})
            assert (part.status, len(part.body)) == (200, len(LARGE)), odd
        beyond = door.ask("GET", "/docs/files/large.bin", headers={"range": f"bytes={10**12}-"})
        assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{len(LARGE)}")
        for value, status in ((etag, 206), ('"other"', 200)):
            headers = {"range": "bytes=0-4", "if-range": value}
            assert door.ask("GET", "/docs/files/large.bin", headers=headers).status == status
        for value in (etag, f'"x", W/{etag}', "*"):
            known = door.ask("GET", "/docs/files/large.bin", headers={"if-none-match": value})
            assert (known.status, known.body) == (304, b"")
        assert door.ask("GET", "/docs/files/empty").body == b""
        assert door.ask("GET", "/docs/files/empty", headers={"range": "bytes=0-"}).status == 416


def test_an_archive_that_the_store_does_not_hand_out_is_not_called_unknown(
    settings: Pipeline, door: FrontDoor
) -> None:
    sealed(settings, {"a.json": b"1"})
    shipped(settings)
    (path,) = (settings.storage_root.parent / "objects").rglob("*.tar.zst")
    path.unlink()
    answer = door.ask("GET", "/docs/files/a.json")
    assert answer.status == 502
    assert "there is no archive" in answer.json()["error"]
    assert door.ask("GET", "/docs/messages/a.json").json()["state"] == "stored"


def test_of_a_name_in_two_archives_the_partition_chooses(
    settings: Pipeline, door: FrontDoor
) -> None:
    partitions = []
    for number in range(2):
        partitions.append(sealed(settings, {"a.json": b"%d" % number}).seal.partition)
        shipped(settings)
    copies = door.ask("GET", "/docs/messages/a.json").json()["copies"]
    assert [copy["partition"] for copy in copies] == partitions
    newest = door.ask("GET", "/docs/files/a.json")
    assert (newest.body, newest.headers["fuploader-partition"]) == (b"1", partitions[1])
    assert door.ask("GET", f"/docs/files/a.json?partition={partitions[0]}").body == b"0"
    assert door.ask("GET", "/docs/files/a.json?partition=../..").status == 404


def test_a_file_that_turns_out_to_be_damaged_is_not_completed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = made(tmp_path, process=ScriptWithFolders())
    steps = script(files=["r.bin"], times=SMALL_BYTES // 4)
    partition = sealed(settings, {"a.json": steps}).seal.partition
    list(process_partitions([partition], settings))
    (result,) = (settings.layout.processed(0, 1) / "files").iterdir()
    whole = result.read_bytes()
    with front_door(settings) as door:
        assert door.ask("GET", "/docs/files/results/r.bin").body == whole
        result.write_bytes(whole[:-1] + b"?")
        with pytest.raises(http.client.IncompleteRead) as broken, caplog.at_level(logging.ERROR):
            door.ask("GET", "/docs/files/results/r.bin")
        assert 0 < len(broken.value.partial) < len(whole)
        assert "is not what was sealed" in caplog.text
        small = sealed(settings, {"b.json": b"1"}, slot=1).segment
        small.write_bytes(small.read_bytes().replace(b"b.json", b"x.json"))
        answer = door.ask("GET", "/docs/files/b.json")
        assert answer.status == 422
        assert "b.json" in answer.json()["error"]


def test_a_client_that_leaves_ends_the_reading(settings: Pipeline, door: FrontDoor) -> None:
    sealed(settings, {"large.bin": LARGE})
    shipped(settings)
    request = f"GET /docs/files/large.bin HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
    for _ in range(20):
        with closing(door.raw(f"{request}\r\n".encode())) as connection:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
    (path,) = (settings.storage_root.parent / "objects").rglob("*.tar.zst")

    def is_closed() -> bool:
        return not [one for one in Path("/proc/self/fd").iterdir() if _leads_to(one, path)]

    wait_until(is_closed, seconds=60, what="the archive to be closed", diagnose=lambda: "")
    assert door.ask("GET", "/docs/files/large.bin").body == LARGE


def _leads_to(descriptor: Path, path: Path) -> bool:
    try:
        return descriptor.readlink() == path
    except FileNotFoundError:
        return False
