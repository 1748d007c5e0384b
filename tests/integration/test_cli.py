"""The commands, as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuploader_dagster.dead_letters.letters import DeadLetter, DeadLetterBox
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from tests.servers.queue_fixtures import waiting
from tests.servers.rabbitmq import RabbitMQServer
from tests.settings import archived_files, archives_in, embedded_parts, pipeline, sealed

FUPLOADER = Path(sys.executable).with_name("fuploader")


def configure(folder: Path, **values: Any) -> None:
    """Write a configuration on embedded parts into the folder."""
    pipeline = {
        **embedded_parts(),
        **values,
    }
    configuration = {"storage_root": "data", "pipelines": {"docs": pipeline}}
    (folder / "fuploader.yaml").write_text(yaml.safe_dump(configuration))


def fuploader(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder."""
    return subprocess.run(
        [str(FUPLOADER), *arguments],
        cwd=folder,
        env={**os.environ, **environment, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def status(folder: Path) -> dict[str, Any]:
    """`fuploader status --json` of the one pipeline."""
    answer = fuploader(folder, "status", "--json")
    assert answer.returncode == 0, answer.stderr
    (found,) = json.loads(answer.stdout)
    return dict(found)


def until(met: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something, or fail."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_publish_drain_seal_and_ship_bring_lines_into_an_archive(tmp_path: Path) -> None:
    configure(tmp_path)
    documents = {f"{n}.json": {"n": n, "text": "ü"} for n in range(300)}
    lines = [json.dumps({"file_name": n, "payload": d}) for n, d in documents.items()]
    (tmp_path / "messages.jsonl").write_text("\n".join(lines) + "\n\n")
    published = fuploader(tmp_path, "publish", "messages.jsonl")
    assert published.returncode == 0, published.stderr
    assert "300 messages are confirmed" in published.stdout
    with subprocess.Popen([str(FUPLOADER), "drain"], cwd=tmp_path) as drain:
        until(lambda: status(tmp_path)["stored_messages"] == 300)
        found = status(tmp_path)
        assert [worker["doing"] for worker in found["workers"]] == ["draining"]
        assert fuploader(tmp_path, "seal").returncode == 0
        until(lambda: status(tmp_path)["sealed"] == 1)
        drain.send_signal(signal.SIGTERM)
        assert drain.wait(60) == 0
    assert status(tmp_path)["workers"] == []
    shipped = fuploader(tmp_path, "ship")
    assert shipped.returncode == 0, shipped.stderr
    expected = {
        name: [json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()]
        for name, document in documents.items()
    }
    assert archived_files(tmp_path / "objects") == expected
    assert status(tmp_path)["sealed"] == 0


def test_a_drain_that_ships_stores_each_task_as_soon_as_it_comes(tmp_path: Path) -> None:
    task = {"split_by": ["task_id"], "key": "tasks/{task_id}/{archive}", "seal_each": "message"}
    configure(tmp_path, message_format="json", name_fields=["task_id"], **task)
    with subprocess.Popen([str(FUPLOADER), "drain", "--ship"], cwd=tmp_path) as drain:
        for names in (["t1"], ["t2", "t3", "t4"]):
            lines = "".join(json.dumps({"task_id": name}) + "\n" for name in names)
            (tmp_path / "tasks.jsonl").write_text(lines)
            assert fuploader(tmp_path, "publish", "tasks.jsonl").returncode == 0
            for name in names:
                folder = tmp_path / "objects" / "tasks" / name
                until(lambda: bool(archives_in(folder)))  # noqa: B023
        drain.send_signal(signal.SIGTERM)
        assert drain.wait(60) == 0
    found = archived_files(tmp_path / "objects")
    assert {len(copies) for copies in found.values()} == {1}
    assert len(archives_in(tmp_path / "objects")) == len(found) == 4


def test_a_drain_that_is_told_to_stop_gives_back_what_it_has_and_uploads_its_residue(
    rabbitmq: RabbitMQServer, fresh_queue: Callable[..., str], tmp_path: Path
) -> None:
    """SIGTERM in the middle, under FUploader's misspelled name of the setting."""
    queue = fresh_queue()
    source = {"kind": "rabbitmq", "url": {"env": "URL"}, "queue": queue}
    configure(tmp_path, source=source, commit_messages=10)
    documents = {f"{n}.json": b"%d" % n for n in range(20_000)}
    settings = RabbitMQ(url=rabbitmq.url, queue=queue)  # type: ignore[arg-type]
    publisher = settings.publisher()
    publisher.publish((encode(name, body, "bytes"), {}) for name, body in documents.items())
    environment = {**os.environ, "URL": rabbitmq.url, "RESIDUE_FILE_UPLOADE": "true"}
    with subprocess.Popen([str(FUPLOADER), "drain"], cwd=tmp_path, env=environment) as drain:
        until(lambda: publisher.backlog() < len(documents) - 2_500)
        drain.send_signal(signal.SIGTERM)
        assert drain.wait(60) == 0
    until(lambda: waiting(rabbitmq, queue) + len(archived_files(tmp_path / "objects")) == 20_000)
    publisher.close()
    archived = archived_files(tmp_path / "objects")
    assert archived == {name: [documents[name]] for name in archived}
    data = tmp_path / "data"
    assert not list(data.rglob("dir-*")), "all that was drained is uploaded"


def test_publish_reaches_rabbitmq_and_is_confirmed(
    rabbitmq: RabbitMQServer, fresh_queue: Callable[..., str], tmp_path: Path
) -> None:
    queue = fresh_queue()
    source = {"kind": "rabbitmq", "url": {"env": "URL"}, "queue": queue}
    configure(tmp_path, source=source, message_format="json")
    (tmp_path / "lines").write_text('{"file_id": 1}\n{"file_id": 2}\n')
    published = fuploader(tmp_path, "publish", "lines", URL=rabbitmq.url)
    assert published.returncode == 0, published.stderr
    assert waiting(rabbitmq, queue) == 2


def test_a_bad_line_is_named_and_ends_with_its_exit_code(tmp_path: Path) -> None:
    configure(tmp_path)
    (tmp_path / "lines").write_text('{"file_name": "a", "payload": 1}\n[1]\n')
    published = fuploader(tmp_path, "publish", "lines")
    assert published.returncode == 5
    assert "line 2 cannot become a message" in published.stderr
    assert "Traceback" not in published.stderr


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"seal_message": 5}, "seal_message"),
        ({"seal_messages": 0}, "seal_messages"),
        ({"prefetch_count": 10, "commit_messages": 10}, "prefetch_count"),
        ({"store": {"kind": "cloud"}}, "kinds are s3, cos, oss, local, mirror"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(
    tmp_path: Path, values: dict[str, Any], sentence: str
) -> None:
    configure(tmp_path, **values)
    answer = fuploader(tmp_path, "status")
    assert answer.returncode == 2
    assert sentence in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_queue_that_does_not_answer_is_exit_code_3_without_the_password(tmp_path: Path) -> None:
    source = {"kind": "rabbitmq", "url": "amqp://me:hidden@127.0.0.1:1/", "queue": "q"}
    configure(tmp_path, source=source)
    (tmp_path / "lines").write_text('{"file_name": "a", "payload": 1}\n')
    answer = fuploader(tmp_path, "publish", "lines")
    assert answer.returncode == 3
    assert "127.0.0.1:1" in answer.stderr
    assert "hidden" not in answer.stderr


def test_a_state_store_that_does_not_answer_hides_nothing_else_in_status(tmp_path: Path) -> None:
    """Nor its password; what it alone knows is null."""
    configure(tmp_path, state={"kind": "redis", "url": "redis://:hidden@127.0.0.1:1/0"})
    sealed(pipeline(tmp_path), {"a": b"1", "b": b"2"})
    answer = fuploader(tmp_path, "status")
    assert answer.returncode == 3, answer.stderr
    assert "nobody can say how many messages were stored, 1 slot sealed" in answer.stdout
    assert "the state store cannot be asked: " in answer.stdout
    assert "no worker runs on this node" in answer.stdout
    as_json = fuploader(tmp_path, "status", "--json")
    assert as_json.returncode == 3
    (found,) = json.loads(as_json.stdout)
    assert (found["stored_messages"], found["slots"], found["sealed"]) == (None, None, 1)
    assert "127.0.0.1:1" in found["state"]["trouble"]
    assert "hidden" not in answer.stdout + answer.stderr + as_json.stdout


def test_dead_letters_are_listed_shown_exported_and_sent_back(tmp_path: Path) -> None:
    configure(tmp_path)
    box = DeadLetterBox(Layout(tmp_path / "data" / "docs"), 0)
    bodies = [b"first [bold]\xff", b"second"]
    box.keep(
        [
            DeadLetter(
                time=box.now(),
                reason="it is [red]no envelope",
                redelivered=False,
                message_id=None,
                attributes={"headers": {"from": "a"}},
                body=body,
            )
            for body in bodies
        ]
    )
    listed = json.loads(fuploader(tmp_path, "dead-letters", "list", "--json").stdout)
    ids = [one["id"] for one in listed]
    assert len(ids) == 2
    assert "it is [red]no envelope" in fuploader(tmp_path, "dead-letters", "list").stdout
    shown = fuploader(tmp_path, "dead-letters", "show", ids[0], "--json").stdout
    assert json.loads(shown)["reason"] == "it is [red]no envelope"
    assert fuploader(tmp_path, "dead-letters", "export", "out").returncode == 0
    assert sorted(path.read_bytes() for path in (tmp_path / "out").iterdir()) == bodies
    assert fuploader(tmp_path, "dead-letters", "requeue", "nobody:1").returncode == 2
    assert fuploader(tmp_path, "dead-letters", "requeue", ids[1]).returncode == 0
    left = json.loads(fuploader(tmp_path, "dead-letters", "list", "--json").stdout)
    assert [one["id"] for one in left] == ids[:1]
    publisher = EmbeddedQueue(path=tmp_path / "queue").publisher()
    assert publisher.backlog() == 1
    assert fuploader(tmp_path, "dead-letters", "discard").returncode == 2
    assert "1 dead letter;" in fuploader(tmp_path, "dead-letters", "discard", "--all").stdout
    assert json.loads(fuploader(tmp_path, "dead-letters", "list", "--json").stdout) == []
    every = fuploader(tmp_path, "dead-letters", "list", "--all", "--json").stdout
    assert [one["id"] for one in json.loads(every)] == ids
    assert publisher.backlog() == 1
    publisher.close()
