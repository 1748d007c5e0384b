"""The project of `fuploader init --example stream-to-clickhouse`, run as its README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fuploader_dagster.cli.init import write_project
from tests.integration.test_examples import (
    SHIP,
    commands,
    on_free_ports,
    run,
    running,
    served,
    ship_until,
)
from tests.servers.clickhouse import ClickhouseServer
from tests.servers.redis import redis_configured


def test_stream_to_clickhouse(
    tmp_path: Path, clickhouse: ClickhouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "flow"
    write_project(project, "stream-to-clickhouse")
    readme = (project / "README.md").read_text()
    (statement,) = re.findall(r"```sql\n(.*?)```", readme, flags=re.DOTALL)
    clickhouse.execute(statement)
    (port,) = on_free_ports(project, "8080")
    doctor, send, ship, _, serve, publish = commands(project)
    assert ship == SHIP
    with redis_configured(tmp_path / "redis") as redis:
        monkeypatch.setenv("REDIS_URL", redis.url())
        monkeypatch.setenv("CLICKHOUSE_URL", clickhouse.url())
        try:
            run(doctor, project)
            assert "1000 more" in run(send, project)
            client = redis.client()
            with running(serve, project):
                served(project, port)
                assert json.loads(run(publish, project)) == {"ids": ["http-1"]}
            ship_until(lambda: client.xlen("BUFF:flow:out") == 1_001, project)
            rows = clickhouse.rows("SELECT rec_id, task_for, data FROM my_table ORDER BY rec_id")
        finally:
            clickhouse.execute("DROP TABLE my_table")
        assert client.xlen("BUFF:flow:in") == 0
    wanted = [(f"rec-{n:06d}", "demo", f"number {n}") for n in range(1_000)]
    assert [tuple(one) for one in rows] == [("http-1", "demo", "a text"), *wanted]
