"""A list that a program fills with LPUSH, whole way, and what commands do with such a queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.test_cli import configure, fuploader, status
from tests.integration.test_stream_to_stream import run_until_empty
from tests.servers.redis import RedisServer

KEY = "batch_download_tasks"


@pytest.mark.timeout(400)
def test_tasks_that_were_pushed_are_archived_and_commands_work_on_the_list(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    url = redis_server.url(7)
    configure(
        tmp_path,
        source={"kind": "redis_list", "url": url, "key": KEY, "max_length": 1_000},
        message_format="json",
        name_fields=["task_id"],
        seal_messages=100,
    )
    tasks = [
        {"task_id": f"{number:04d}", "task_info": [{"fn": "a.png", "url": "http://host/ä"}]}
        for number in range(250)
    ]
    with redis_server.client(7) as client:
        client.flushdb()
        for task in tasks:
            client.lpush(KEY, json.dumps(task))
        client.lpush(KEY, "not JSON")
        doctor = fuploader(tmp_path, "doctor")
        assert "251 messages wait, taken from the right end" in doctor.stdout, doctor.stdout
        assert status(tmp_path)["queue"]["depth"] == {"waiting": 251, "in_hand": 0, "parts": []}
        run_until_empty(tmp_path)
        assert client.keys("*") == []
        found = status(tmp_path)
        assert (found["stored_messages"], found["dead_letters"]) == (250, 1)
        assert found["queue"]["depth"]["waiting"] == 0

        (letter,) = json.loads(fuploader(tmp_path, "dead-letters", "list", "--json").stdout)
        done = fuploader(tmp_path, "dead-letters", "requeue", letter["id"])
        assert done.returncode == 0, done.stderr
        assert client.brpop(KEY, 1) == (KEY, "not JSON")

        done = fuploader(tmp_path, "replay", "--name", "*", "--queue", "tasks_again")
        assert done.returncode == 0, done.stderr
        again = [json.loads(body) for body in client.lrange("tasks_again", 0, -1)]
        assert again == tasks[::-1]  # BRPOP takes them in their old order

        lines = tmp_path / "more.jsonl"
        lines.write_text('{"file_name": "x.json", "payload": {"a": 1}}\n')
        done = fuploader(tmp_path, "publish", str(lines))
        assert done.returncode == 0, done.stderr
        assert client.llen(KEY) == 1
        client.flushdb()
