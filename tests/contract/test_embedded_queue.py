"""The embedded queue's own troubles: several processes, removed and unusable files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fuploader_dagster.errors import BadMessage, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.embedded import EmbeddedQueue
from fuploader_dagster.source import CommittedBatch

WORKER = """
import random, sys
from pathlib import Path
from fuploader_dagster.resources.embedded import EmbeddedQueue
from fuploader_dagster.source import CommittedBatch

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
    assert [message.body for message in source.receive(1, 10)] == [b"x"]
    assert time.monotonic() - begun < 0.5
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
    with pytest.raises(SourceRefused, match="damaged"):
        EmbeddedQueue(path=tmp_path).publisher().backlog()


def test_a_header_that_is_no_json_value_is_refused_by_name(tmp_path: Path) -> None:
    publisher = EmbeddedQueue(path=tmp_path).publisher()
    with pytest.raises(BadMessage, match="header"):
        publisher.publish([(b"x", {"when": object()})])
    assert publisher.backlog() == 0
    publisher.close()
