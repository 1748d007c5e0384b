"""From a stream of one Redis to a stream of another, and what commands do with such a queue."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_cli import configure, fuploader
from tests.servers.redis import RedisServer, redis_configured

RUN = """
from fuploader_dagster import load_pipelines, run_pipeline
run_pipeline(load_pipelines()["docs"], until_empty=True)
"""


@pytest.fixture
def other_host(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_configured(tmp_path / "other") as running:
        yield running


@pytest.fixture
def one_host(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_configured(tmp_path / "redis") as running:
        yield running


def run_until_empty(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_entries_go_from_one_host_to_the_other_once(
    tmp_path: Path, one_host: RedisServer, other_host: RedisServer
) -> None:
    source = {"kind": "redis_stream", "url": one_host.url(), "stream": "stream_out"}
    sink = {"kind": "redis_stream", "url": other_host.url(), "stream": "stream_in"}
    configure(
        tmp_path,
        source={**source, "max_length": 10_000},
        sinks={"next": {**sink, "max_length": 10_000, "required": True}},
        message_format="json",
        name_fields=["rec_id"],
        seal_messages=100,
    )
    wanted = [{"rec_id": f"{number:04d}", "name": "täxt"} for number in range(250)]
    with one_host.client() as from_host, other_host.client() as to_host:
        for row in wanted:
            from_host.xadd("stream_out", row)
        from_host.xadd("stream_out", {"body": "not JSON", "cmd": "thumb/64"})
        doctor = fuploader(tmp_path, "doctor")
        assert "251 messages wait" in doctor.stdout, doctor.stdout + doctor.stderr
        assert "stream stream_in" in doctor.stdout
        run_until_empty(tmp_path)
        assert from_host.xlen("stream_out") == 0
        stored = [fields for _, fields in to_host.xrange("stream_in")]
        assert sorted(stored, key=lambda row: row["rec_id"]) == wanted

        (letter,) = json.loads(fuploader(tmp_path, "dead-letters", "list", "--json").stdout)
        done = fuploader(tmp_path, "dead-letters", "requeue", letter["id"])
        assert done.returncode == 0, done.stderr
        ((_, fields),) = from_host.xrange("stream_out")
        assert (fields["body"], json.loads(fields["headers"])) == ("not JSON", {"cmd": "thumb/64"})

        done = fuploader(tmp_path, "replay", "--name", "*", "--queue", "stream_again")
        assert done.returncode == 0, done.stderr
        again = [json.loads(fields["body"]) for _, fields in from_host.xrange("stream_again")]
        assert sorted(again, key=lambda row: str(row["rec_id"])) == wanted
        assert to_host.xlen("stream_in") == 250
