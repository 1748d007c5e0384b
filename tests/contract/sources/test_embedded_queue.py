"""The embedded queue's own troubles: several processes, removed and unusable files."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuploader_dagster.contracts.source import CommittedBatch, Message
from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.errors import BadMessage, SlotInUse, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.embedded import salvage as embedded_salvage
from fuploader_dagster.resources.sources.embedded.salvage import salvage
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from tests.drains import (
    assert_exactly_once,
    draining,
    embedded,
    files,
    publish,
    wait_until_handled,
)

WORKER = """
import random, sys
from pathlib import Path
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.contracts.source import CommittedBatch

source = EmbeddedQueue(path=Path(sys.argv[1])).source(prefetch=100)
source.open()
print("open", flush=True)
sys.stdin.readline()
while messages := source.receive(random.randint(1, 60), 1.5):
    settled = messages[: random.randint(1, len(messages))]
    source.settle(CommittedBatch(last=settled[-1], messages=len(settled)))
    for message in settled:
        print(message.body.decode())
    if len(settled) < len(messages):
        source.close()
        source.open()
source.close()
"""


def test_several_processes_settle_each_message_exactly_once(tmp_path: Path) -> None:
    settings = EmbeddedQueue(path=tmp_path / "queue")
    publisher = settings.publisher()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(settings.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "open\n"
    bodies = [f"m{number}" for number in range(2_000)]
    publisher.publish((body.encode(), {}) for body in bodies)
    outputs = [worker.communicate("go\n", timeout=60)[0] for worker in workers]
    assert Counter("".join(outputs).split()) == Counter(bodies)
    assert publisher.backlog() == 0
    publisher.close()


def test_a_message_published_while_a_consumer_waits_arrives_at_once(tmp_path: Path) -> None:
    settings = EmbeddedQueue(path=tmp_path / "queue")
    publisher, source = settings.publisher(), settings.source(prefetch=10)
    source.open()
    assert source.receive(1, 0) == []
    publisher.publish([(b"x", {})])
    begun = time.monotonic()
    assert [message.body for message in source.receive(1, 120)] == [b"x"]
    assert time.monotonic() - begun < 60
    source.close()
    publisher.close()


def test_space_of_settled_messages_is_used_again(tmp_path: Path) -> None:
    settings = EmbeddedQueue(path=tmp_path / "queue")
    publisher, source = settings.publisher(), settings.source(prefetch=1_000)
    source.open()
    sizes = []
    for _ in range(4):
        publisher.publish((os.urandom(2_000), {}) for _ in range(500))
        messages = source.receive(500, 5)
        source.settle(CommittedBatch(last=messages[-1], messages=500))
        sizes.append(sum(file.stat().st_size for file in settings.path.glob("queue.sqlite*")))
    assert sizes[3] < 2 * sizes[0] + 5_000_000
    source.close()
    publisher.close()


def test_the_deliveries_of_a_message_are_counted(tmp_path: Path) -> None:
    settings = EmbeddedQueue(path=tmp_path / "queue")
    publisher, source = settings.publisher(), settings.source(prefetch=10)
    publisher.publish([(b"x", {})])
    for expected in (1, 2, 3):
        source.open()
        (message,) = source.receive(1, 5)
        assert source.describe(message) == {"deliveries": expected}
        assert message.redelivered == (expected > 1)
        source.close()
    publisher.close()


def test_a_queue_that_is_removed_while_open_is_an_error_and_a_new_one_can_be_opened(
    tmp_path: Path,
) -> None:
    settings = EmbeddedQueue(path=tmp_path / "queue")
    publisher, source = settings.publisher(), settings.source(prefetch=10)
    publisher.publish([(b"old", {})])
    source.open()
    shutil.rmtree(settings.path)
    with pytest.raises(SourceUnavailable, match="removed or replaced"):
        source.receive(1, 0)
    with pytest.raises(SourceUnavailable, match="removed or replaced"):
        publisher.publish([(b"lost", {})])
    source.open()
    publisher.publish([(b"new", {})])
    assert [message.body for message in source.receive(5, 5)] == [b"new"]
    source.close()
    publisher.close()


def test_a_folder_that_is_a_file_needs_a_person(tmp_path: Path) -> None:
    (tmp_path / "queue").write_text("in the way")
    with pytest.raises(SourceRefused, match="folder"):
        EmbeddedQueue(path=tmp_path / "queue").source(prefetch=1).open()


def test_a_damaged_queue_needs_a_person(tmp_path: Path) -> None:
    (tmp_path / "queue.sqlite").write_bytes(b"no database" * 1_000)
    with pytest.raises(SourceRefused, match=r"docs/operations\.md"):
        EmbeddedQueue(path=tmp_path).publisher().backlog()
    assert DAMAGE_HEADING in OPERATIONS.read_text()


OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
DAMAGE_HEADING = "The file of an embedded queue is damaged"
CHANGES = {
    "a bit of the body": "body = CAST(replace(body, 'dy-1', 'dy-9') AS BLOB)",
    "a body that is text": "body = CAST(body || 'x' AS TEXT)",
    "a body that is a number": "body = 7",
    "a bit of the id": "message_id = 'ie-1'",
    "an id that is no UTF-8": "message_id = CAST(x'ff80' AS TEXT)",
    "an id that is a number": "message_id = 7",
    "no id": "message_id = NULL",
    "a bit of the headers": "headers = replace(headers, 'red', 'rad')",
    "headers that are no JSON": "headers = '{\"colour\": r'",
    "headers that are another JSON": "headers = '[1]'",
    "headers without an end": "headers = replace(printf('%9999d', 0), ' ', '[')",
    "headers that are a number": "headers = 2.5",
    "headers that are no UTF-8": "headers = CAST(x'ff' AS TEXT)",
    "no headers": "headers = NULL",
    "a bit of the digest": "digest = zeroblob(16)",
    "a digest that is text": "digest = 'digest'",
}


def three_published(folder: Path, change: str) -> EmbeddedQueue:
    """A queue of three messages, of which the second one's row is then changed."""
    settings = EmbeddedQueue(path=folder / "queue")
    publisher = settings.publisher()
    publisher.publish(
        (b"body-%d" % n, {"message_id": f"id-{n}", "colour": "red"}) for n in range(3)
    )
    publisher.close()
    with sqlite3.connect(settings.path / "queue.sqlite") as db:
        db.execute(f"UPDATE messages SET {change} WHERE id = 2")  # noqa: S608
    db.close()
    return settings


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_row_that_changed_is_told_as_damage_with_its_bytes_and_the_rest_flows(
    tmp_path: Path, change: str
) -> None:
    settings = three_published(tmp_path, change)
    source = settings.source(prefetch=10)
    source.open()
    messages = source.receive(10, 5)
    assert [bool(one.damage) for one in messages] == [False, True, False]
    described = [source.describe(one) for one in messages]
    assert described[0] == {"deliveries": 1, "headers": {"colour": "red"}, "message_id": "id-0"}
    msgspec.json.encode(described)
    if "body" not in change:
        assert messages[1].body == b"body-1"
    source.settle(CommittedBatch(messages[-1], 3))
    source.close()
    assert settings.publisher().backlog() == 0


@pytest.mark.parametrize("deliveries", ["'many'", "-5", "x'ff'", "9e99", "9223372036854775807"])
def test_a_count_of_deliveries_that_is_none_counts_as_delivered_before(
    tmp_path: Path, deliveries: str
) -> None:
    settings = three_published(tmp_path, f"deliveries = {deliveries}")
    source = settings.source(prefetch=10)
    source.open()
    messages = source.receive(10, 5)
    assert [one.redelivered for one in messages] == [False, True, False]
    assert not any(one.damage for one in messages)
    source.close()


def test_a_damaged_row_becomes_a_dead_letter_with_its_bytes_and_the_rest_is_stored(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    contents = files(5)
    publish(settings, contents)
    queue = tmp_path / "queue" / "queue.sqlite"
    with sqlite3.connect(queue) as db:
        (body,) = db.execute("SELECT body FROM messages WHERE id = 3").fetchone()
        changed = body[:-9] + bytes([body[-9] ^ 4]) + body[-8:]
        db.execute("UPDATE messages SET body = ? WHERE id = 3", [changed])
    db.close()
    lost = list(contents)[2]
    with draining(settings):
        wait_until_handled(settings, 5)
    (letter,) = read_dead_letters(settings.layout)
    assert letter.body == changed
    assert "not what was published" in letter.reason
    assert_exactly_once(settings, {name: body for name, body in contents.items() if name != lost})


def test_whatever_bits_change_no_message_is_handed_out_as_right_that_was_not_published(
    tmp_path: Path,
) -> None:
    """In files with 8 changed bits each; about half of them changed messages."""
    dice = random.Random(4)
    bodies = [b"body-%03d-" % n + dice.randbytes(300) for n in range(100)]
    settings = EmbeddedQueue(path=tmp_path / "queue")
    publisher = settings.publisher()
    publisher.publish((body, {"message_id": "id"}) for body in bodies)
    publisher.close()
    path = settings.path / "queue.sqlite"
    good = path.read_bytes()
    damaged = 0
    for _ in range(40):
        content = bytearray(good)
        for place in dice.sample(range(len(good)), 8):
            content[place] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        source = settings.source(prefetch=1_000)
        messages: list[Message] = []
        with suppress(SourceRefused, SourceUnavailable):
            source.open()
            messages = source.receive(1_000, 0)
        for message in messages:
            msgspec.json.encode(source.describe(message))
            damaged += bool(message.damage)
            assert message.damage or (message.body in bodies and message.message_id == "id")
        source.close()
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
    assert damaged > 10


def test_messages_that_damage_made_unreachable_are_missed_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = three_published(tmp_path, "id = -2")
    source = settings.source(prefetch=10)
    source.open()
    messages = source.receive(10, 5)
    source.settle(CommittedBatch(messages[-1], len(messages)))
    assert "should hold" not in caplog.text
    assert source.receive(10, 0) == []
    assert "should hold 1 messages but holds none" in caplog.text
    source.close()


def test_nothing_is_removed_that_was_not_handed_out(tmp_path: Path) -> None:
    settings = three_published(tmp_path, "id = 9")
    source = settings.source(prefetch=10)
    source.open()
    messages = source.receive(10, 5)
    with sqlite3.connect(settings.path / "queue.sqlite") as db:
        db.execute("INSERT INTO messages (id, body) VALUES (5, 'appeared')")
    db.close()
    with pytest.raises(SourceRefused, match="3 rows were read, 4 are there"):
        source.settle(CommittedBatch(messages[-1], 3))
    with closing(sqlite3.connect(settings.path / "queue.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone() == (4,)
    source.close()


@pytest.mark.parametrize("consumer", ["'../../../x'", "x'00ff'", "''", "7"])
def test_what_a_damaged_note_says_is_held_is_handed_out(tmp_path: Path, consumer: str) -> None:
    settings = three_published(tmp_path, "id = 2")
    with sqlite3.connect(settings.path / "queue.sqlite") as db:
        db.execute(f"INSERT INTO held VALUES ({consumer}, 1, 9, 3)")  # noqa: S608
    db.close()
    source = settings.source(prefetch=10)
    source.open()
    assert len(source.receive(10, 5)) == 3
    source.close()


def test_a_queue_of_a_program_before_the_digest_is_read_and_written(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "queue.sqlite") as db:
        db.executescript(SCHEMA_WITHOUT_DIGEST)
        rows = [("one", '{"a": 1}', b"1"), (None, None, b"2"), ("three", "{", b"3")]
        db.executemany("INSERT INTO messages (message_id, headers, body) VALUES (?, ?, ?)", rows)
        db.execute("INSERT INTO waiting VALUES (0, 3)")
    db.close()
    settings = EmbeddedQueue(path=tmp_path)
    publisher, source = settings.publisher(), settings.source(prefetch=10)
    assert publisher.backlog() == 3
    publisher.publish([(b"4", {"a": 2})])
    source.open()
    messages = source.receive(10, 5)
    assert [one.body for one in messages] == [b"1", b"2", b"3", b"4"]
    assert [bool(one.damage) for one in messages] == [False, False, True, False]
    assert source.describe(messages[0]) == {
        "deliveries": 1,
        "headers": {"a": 1},
        "message_id": "one",
    }
    with sqlite3.connect(tmp_path / "queue.sqlite") as db:  # a program of before still writes
        db.execute("INSERT INTO messages (message_id, headers, body) VALUES (?, ?, ?)", rows[0])
    db.close()
    assert [one.damage for one in source.receive(10, 5)] == [""]
    source.close()
    publisher.close()


SCHEMA_WITHOUT_DIGEST = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT, headers TEXT,
    deliveries INTEGER NOT NULL DEFAULT 0, body BLOB NOT NULL);
CREATE TABLE held (
    consumer TEXT NOT NULL, first INTEGER PRIMARY KEY, last INTEGER NOT NULL,
    messages INTEGER NOT NULL);
CREATE TABLE waiting (only INTEGER PRIMARY KEY CHECK (only = 0), messages INTEGER);
"""

deep: list[Any] = []
for _ in range(60):
    deep = [deep]
KEPT = {
    "nested": {"list": [1, 2.5, None, True, {"x": "y"}], "empty": {}},
    "integers": [2**64 - 1, -(2**63), 0],
    "floats": [1e308, 5e-324, -0.5],
    "text": '\x00 \x1b \u2028 \U0001f600 消息 "quoted"',
    "": "a header without a name",
    "deep": deep,
}


@pytest.mark.parametrize("name", KEPT)
def test_headers_are_the_same_after_their_way_and_can_be_written_down(
    tmp_path: Path, name: str
) -> None:
    settings = EmbeddedQueue(path=tmp_path)
    publisher, source = settings.publisher(), settings.source(prefetch=10)
    publisher.publish([(b"x", {name: KEPT[name], "message_id": "\x00消息"})])
    source.open()
    (message,) = source.receive(10, 5)
    described = source.describe(message)
    assert message.message_id == "\x00消息"
    assert described["headers"] == {name: KEPT[name]}
    assert msgspec.json.decode(msgspec.json.encode(described)) == described
    source.close()
    publisher.close()


REFUSED = {
    "object": {"when": object()},
    "bytes": {"raw": b"bytes"},
    "not a number": {"n": float("nan")},
    "endless": {"n": [float("-inf")]},
    "65 bits": {"n": 2**64},
    "5000 digits": {"n": 10**5000},
    "a number as a name": {"n": {1: "x"}},
    "none as a name": {None: "x"},
    "half a character": {"n": "\ud800"},
    "half a character as a name": {"n": {"\ud800": 1}},
    "half a character as an id": {"message_id": "\ud800"},
    "too deep": {"n": [deep, [[[[[[[[deep]]]]]]]]]},
    "a set": {"n": {1, 2}},
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED.keys())
def test_a_header_that_would_not_come_back_as_it_is_is_refused(
    tmp_path: Path, headers: dict[str, Any]
) -> None:
    publisher = EmbeddedQueue(path=tmp_path).publisher()
    with pytest.raises(BadMessage, match=r"header|message_id"):
        publisher.publish([(b"x", headers)])
    assert publisher.backlog() == 0
    publisher.close()


def test_what_can_be_read_of_a_damaged_file_is_saved_as_a_new_queue(tmp_path: Path) -> None:
    settings = EmbeddedQueue(path=tmp_path / "queue")
    publisher = settings.publisher()
    bodies = [b"%05d" % n + b"x" * 1_000 for n in range(2_000)]
    publisher.publish((body, {"message_id": "id"}) for body in bodies)
    publisher.close()
    path = settings.path / "queue.sqlite"
    content = bytearray(path.read_bytes())
    page = content.index(b"00777") // 4096
    for number in (page, page + 100):
        content[number * 4096 : number * 4096 + 100] = b"\xff" * 100
    changed = content.index(b"00123x")
    content[changed + 6] ^= 1
    path.write_bytes(content)
    source = settings.source(prefetch=5_000)
    source.open()
    with pytest.raises(SourceRefused, match="malformed"):
        source.receive(5_000, 5)
    source.open()
    with pytest.raises(SlotInUse):
        salvage(settings.path)
    source.close()

    done = salvage(settings.path)
    assert done.damaged.read_bytes()[:16] == b"SQLite format 3\0"
    assert done.saved + done.unreadable == 2_000
    assert 0 < done.unreadable < 20
    assert settings.publisher().backlog() == done.saved
    source.open()
    messages = source.receive(5_000, 5)
    assert len(messages) == done.saved
    assert all(message.redelivered for message in messages)
    sound = [message.body for message in messages if not message.damage]
    assert len(sound) == done.saved - 1
    assert sound == [body for body in bodies if body in set(sound)]
    source.close()


def test_salvaging_a_sound_queue_keeps_everything_and_one_that_is_none_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = three_published(tmp_path, "body = body")
    assert embedded_salvage.main([str(settings.path)]) == 0
    assert "3 messages are in the new queue; 0 rows could not be read" in capsys.readouterr().out
    source = settings.source(prefetch=10)
    source.open()
    assert [one.body for one in source.receive(10, 5)] == [b"body-0", b"body-1", b"body-2"]
    source.close()
    (settings.path / "queue.sqlite").write_bytes(b"no database" * 1_000)
    assert embedded_salvage.main([str(settings.path)]) == 4
    assert "not a database" in capsys.readouterr().err


def test_few_large_messages_are_taken_at_once(tmp_path: Path) -> None:
    settings = EmbeddedQueue(path=tmp_path)
    publisher, source = settings.publisher(), settings.source(prefetch=1_000)
    publisher.publish((bytes([n]) * 3_000_000, {}) for n in range(5))
    source.open()
    taken = [source.receive(500, 5) for _ in range(3)]
    assert [[message.body[0] for message in some] for some in taken] == [[0, 1], [2, 3], [4]]
    source.settle(CommittedBatch(taken[2][-1], 5))
    assert publisher.backlog() == 0
    source.close()
    publisher.close()
