"""`fuploader doctor` on real servers: what is in order, what is broken; it leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pika
import pytest

from fuploader_dagster.cli.init import write_project
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.health.doctor import examine, object_store
from fuploader_dagster.resources.object_stores import S3, Local
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.settings.pipeline import Pipeline
from tests.integration.test_cli import configure, fuploader
from tests.servers.ports import free_port
from tests.servers.queue_fixtures import channel, new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.s3_dialects import (
    DefaultKms,
    Dialect,
    DialectProxy,
    Drops,
    Refuses,
    refusal,
)
from tests.servers.swift import SwiftServer
from tests.settings import pipeline


def diagnoses(settings: Pipeline) -> dict[str, Diagnosis]:
    """What was found, by what was looked at. Whatever is not good has a hint."""
    found = list(examine(settings))
    assert all(one.hint for one in found if one.verdict != "good")
    return {one.check: one for one in found}


def s3(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch, **values: Any) -> S3:
    monkeypatch.setenv("DOCTORS_SECRET", swift.secret_key)
    return S3(
        **{
            "bucket": swift.fresh_bucket(),
            "endpoint_url": swift.endpoint,
            "region": "us-east-1",
            "access_key_id": swift.access_key,
            "secret_access_key": dg.EnvVar("DOCTORS_SECRET"),
            **values,
        }
    )


def test_everything_in_order_is_found_good_and_nothing_is_changed(
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
    swift: SwiftServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    queue, store = new_queue(rabbitmq, "quorum"), s3(swift, monkeypatch)
    with channel(rabbitmq) as open_channel:
        open_channel.confirm_delivery()
        open_channel.basic_publish("", queue, b"body", pika.BasicProperties(delivery_mode=2))
    settings = pipeline(
        tmp_path,
        source=RabbitMQ(url=rabbitmq.url, queue=queue),
        state=RedisState(url=redis_server.url(), key_prefix=queue),
        store=store,
        former_stores=(Local(path=str(tmp_path / "former")),),
    )
    found = diagnoses(settings)
    looked_at = ["broker", "queue", "queue type", "object store", "removal", "listing", "clock"]
    looked_at += ["state", "state server", "eviction", "persistence", "former store"]
    assert {check: found[check].verdict for check in looked_at} == dict.fromkeys(looked_at, "good")
    assert "1 message waits" in found["queue"].found
    assert "quorum" in found["queue type"].found
    assert "append-only" in found["persistence"].found
    assert redis_server.client().keys(f"{queue}*") == []
    assert list(store.open().list()) == []
    assert store.open().unfinished() == []
    with channel(rabbitmq) as open_channel:
        still = open_channel.queue_declare(queue, passive=True).method
    assert (still.message_count, still.consumer_count) == (1, 0)


def test_each_broken_part_is_named_and_does_not_hide_the_others(
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
    swift: SwiftServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    broken = pipeline(
        tmp_path,
        storage_root=tmp_path / "file" / "data",
        source=RabbitMQ(url=rabbitmq.url, queue="never-declared", declare=False),
        state=RedisState(url=f"redis://:wrong@127.0.0.1:{redis_server.port}/0"),
        store=s3(swift, monkeypatch, bucket="no-such-bucket"),
        prefetch_count=600,
        commit_messages=500,
    )
    found = diagnoses(broken)
    verdicts = {check: one.verdict for check, one in found.items() if one.verdict != "good"}
    assert verdicts == {
        "queue": "wrong",
        "prefetch": "warning",
        "disk": "wrong",
        "state": "wrong",
        "object store": "wrong",
    }
    assert "never-declared" in found["queue"].found
    assert "user and password" in found["state"].hint
    assert "no-such-bucket" in found["object store"].found
    nowhere = f"127.0.0.1:{free_port()}"
    away = pipeline(
        tmp_path,
        source=RabbitMQ(url=f"amqp://guest:a-secret@{nowhere}/", queue="q"),
        state=RedisState(url=f"redis://:a-secret@{nowhere}/0"),
        store=s3(swift, monkeypatch, endpoint_url=f"http://{nowhere}"),
    )
    found = diagnoses(away)
    for check in ("queue", "state", "object store"):
        assert found[check].verdict == "unreachable"
    assert "a-secret" not in str(found)
    refused = s3(swift, monkeypatch)
    monkeypatch.setenv("DOCTORS_SECRET", "not-the-secret")
    wrong_keys = pipeline(
        tmp_path,
        source=RabbitMQ(url=f"amqp://guest:wrong@127.0.0.1:{rabbitmq.port}/", queue="q"),
        store=refused,
    )
    found = diagnoses(wrong_keys)
    assert found["queue"].verdict == "wrong"
    assert found["object store"].verdict == "wrong"


def test_the_arguments_of_a_queue_are_read_without_changing_it(
    rabbitmq: RabbitMQServer, tmp_path: Path
) -> None:
    arguments = {"x-message-ttl": 60_000, "x-max-length": 1_000, "x-overflow": "reject-publish"}
    with channel(rabbitmq) as open_channel:
        open_channel.queue_declare("doctors-queue", durable=False, arguments=arguments)
        settings = RabbitMQ(url=rabbitmq.url, queue="doctors-queue")
        found = {one.check: one for one in settings.examine()}
        assert found["queue type"].verdict == "wrong"
        for said in ("durable false", "x-message-ttl 60000", "x-max-length 1000"):
            assert said in found["queue type"].found
        open_channel.queue_declare("doctors-queue", durable=False, arguments=arguments)
        open_channel.queue_delete("doctors-queue")
    (missing,) = [one for one in settings.examine() if one.check == "queue"]
    assert missing.verdict == "warning"
    assert "the first worker declares it" in missing.found


def test_the_doctor_leaves_no_version_in_a_bucket_with_versions(
    swift: SwiftServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, client = s3(swift, monkeypatch), swift.client()
    client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    found = {one.check: one for one in object_store(pipeline(tmp_path, store=store))}
    assert found["removal"].verdict == "good"
    left = client.list_object_versions(Bucket=store.bucket)
    assert left.get("Versions", []) == left.get("DeleteMarkers", []) == []


@pytest.mark.parametrize(
    ("dialects", "verdict"),
    [
        ([DefaultKms()], "good"),
        ([Drops("ETag", "part", listed=False)], "wrong"),
        ([Refuses(refusal(403, "InvalidObjectState"), "get")], "wrong"),
        ([Refuses(refusal(400, "ExpiredToken"), "head", "get")], "wrong"),
    ],
)
def test_the_doctor_finds_what_a_large_archive_would_meet(
    swift: SwiftServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    dialects: list[Dialect],
    verdict: str,
) -> None:
    with DialectProxy(swift.port, *dialects) as proxy:
        store = s3(swift, monkeypatch, endpoint_url=proxy.endpoint)
        settings = pipeline(tmp_path, store=store)
        found = {one.check: one for one in object_store(settings)}
        assert found["object store"].verdict == verdict
        assert proxy.count("part") == (0 if "ExpiredToken" in found["object store"].found else 1)
    assert verdict == "good" or "rights" not in found["object store"].hint


def test_a_crc_that_is_computed_in_python_is_a_warning(tmp_path: Path) -> None:
    program = """if True:
        import sys
        {}
        from fuploader_dagster.resources.object_stores.cos import COSSettings
        for one in COSSettings(bucket="b-125", region="r").examine():
            print(one.check, one.verdict, one.hint)
    """
    for spoil, verdict in (("", "good"), ("sys.modules['crcmod._crcfunext'] = None", "warning")):
        told = subprocess.run(
            [sys.executable, "-c", program.format(spoil)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.startswith(f"CRC-64 {verdict}")
    assert "compiler" in told.stdout


def test_the_command_says_each_finding_as_json_and_ends_with_the_worst(tmp_path: Path) -> None:
    project = tmp_path / "My project"
    written = fuploader(tmp_path, "init", str(project))
    assert written.returncode == 0, written.stderr
    answer = fuploader(project, "doctor", "--json")
    assert answer.returncode == 0, answer.stderr
    rows = json.loads(answer.stdout)
    assert {row["pipeline"] for row in rows} == {"documents"}
    assert {"queue", "parser", "disk space", "state", "object store"} <= {r["check"] for r in rows}
    assert {row["verdict"] for row in rows} <= {"good", "warning"}
    configure(tmp_path, store={"kind": "local", "path": "fuploader.yaml/objects"})
    answer = fuploader(tmp_path, "doctor", "--trouble")
    assert answer.returncode == 4
    assert "object store" in answer.stdout
    assert "queue" not in answer.stdout


def test_a_new_project_passes_its_own_test_and_is_never_written_over(tmp_path: Path) -> None:
    project = tmp_path / "Words & more"
    files = write_project(project)
    assert {path.name for path in files} >= {".gitignore", "fuploader.yaml", "strategies.py"}
    assert 'name = "words-more"' in (project / "pyproject.toml").read_text()
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    for path in files[1:]:
        path.unlink()
    again = fuploader(tmp_path, "init", str(project))
    assert again.returncode == 2
    assert "nothing was written" in again.stderr
    assert not files[1].exists()
