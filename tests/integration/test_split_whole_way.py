"""From the queue to archives below the values of their messages, read by DuckDB as a stranger."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fuploader_dagster import run_pipeline
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import receipts_between
from tests.drains import MARK, on_servers, publish, publish_bodies
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer
from tests.settings import archived_files, pipeline

TENANTS = ["acme", "Müller & Söhne", "a/b=c", "..", "客户", "50%", "_none", None]
KEY = "{pipeline}/tenant={tenant}/day={event:%Y-%m-%d}/{archive}"
MESSAGES = 400


def bodies() -> dict[str, bytes]:
    return {
        f"m{n}.json": json.dumps(
            {
                "id": f"m{n}.json",
                "meta": {"tenant": TENANTS[n % len(TENANTS)]},
                "created_at": 1795218000 + n * 600,  # from 21 November on, in Shanghai
            }
        ).encode()
        for n in range(MESSAGES)
    }


def made(folder: Path, **values: Any) -> Pipeline:
    return pipeline(
        folder,
        **{
            "source": EmbeddedQueue(path=folder / "queue"),
            "min_free_bytes": MARK,
            "message_format": "json",
            "name_fields": ("id",),
            "seal_messages": 150,
            "split_by": {"tenant": "meta.tenant", "event": "created_at"},
            "key": KEY,
            "timezone": "Asia/Shanghai",
            **values,
        },
    )


def queried(query: str, source: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as db:
        return db.sql(query.replace("SOURCE", source)).fetchall()


@pytest.mark.parametrize("slot_format", ["segment", "files"])
@pytest.mark.parametrize("archive_format", ["parquet", "jsonl.zst"])
def test_duckdb_prunes_by_path_and_reads_the_values_back(
    tmp_path: Path, archive_format: str, slot_format: str
) -> None:
    settings = made(tmp_path, archive_format=archive_format, slot_format=slot_format)
    publish_bodies(settings, list(bodies().values()))
    shipped = run_pipeline(settings, until_empty=True)
    assert (shipped.messages, shipped.failures) == (MESSAGES, ())
    files = f"'{tmp_path}/objects/docs/*/*/*.{archive_format}'"
    if archive_format == "parquet":
        source = f"read_parquet({files}, hive_partitioning=true, union_by_name=true)"
        own = "decode(_content)::json->'meta'->>'tenant'"
    else:
        columns = "{name: 'VARCHAR', content: 'JSON'}"
        source = f"read_json({files}, hive_partitioning=true, columns={columns})"
        own = "content->'meta'->>'tenant'"
    found = queried(
        "select tenant, OWN, count(*) from SOURCE group by all".replace("OWN", own), source
    )
    days = queried("select distinct day::varchar from SOURCE order by 1", source)
    (one,) = queried("select count(*) from SOURCE where tenant = 'a/b=c'", source)
    each = MESSAGES // len(TENANTS)
    assert Counter(found) == Counter(
        ("_none" if tenant is None else tenant, tenant, each) for tenant in TENANTS
    )
    assert days == [(f"2026-11-{day}",) for day in range(21, 25)]
    assert one == (each,)


def test_a_bucket_has_an_archive_per_slot_and_value(
    swift: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", swift.secret_key)
    bucket = swift.fresh_bucket()
    store = S3(
        bucket=bucket,
        endpoint_url=swift.endpoint,
        region=swift.region,
        access_key_id=swift.access_key,
        secret_access_key={"env": "SECRET_OF_THE_TEST"},
    )
    settings = made(tmp_path, store=store, message_format="envelope", split_limit=4)
    publish(settings, bodies())
    shipped = run_pipeline(settings, until_empty=True)
    assert (shipped.messages, shipped.failures) == (MESSAGES, ())
    listed = swift.client().list_objects_v2(Bucket=bucket)["Contents"]
    receipts = receipts_between(settings.layout)
    assert {one["Key"] for one in listed} == {one.key for one in receipts.values()}
    assert len(listed) == shipped.archives == len(receipts)
    folders = Counter(one.key.rpartition("/")[0] for one in receipts.values())
    assert max(folders.values()) <= 4  # slots
    assert "docs/tenant=_other/day=_other" in folders
    assert sum(one.messages for one in receipts.values()) == MESSAGES


def test_workers_on_rabbitmq_and_redis_divide_what_they_seal(
    rabbitmq: RabbitMQServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = made(
        tmp_path,
        **on_servers(rabbitmq, redis_server),
        message_format="envelope",
        name_fields=("file_name",),
        process_count=2,
        slots_per_worker=2,
        seal_messages=60,
        commit_messages=20,
        archive_format="tar.zst",
    )
    publish(settings, bodies())
    shipped = run_pipeline(settings, until_empty=True)
    assert (shipped.messages, shipped.failures) == (MESSAGES, ())
    stored = tmp_path / "objects" / "docs"
    assert archived_files(stored) == {name: [body] for name, body in bodies().items()}
    of_acme = {f"m{n}.json" for n in range(0, MESSAGES, len(TENANTS))}
    assert archived_files(stored / "tenant=acme").keys() == of_acme
