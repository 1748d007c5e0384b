"""One ClickHouse a session. A test that kills or pauses it brings it back before it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.clickhouse import ClickhouseServer


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickhouseServer]:
    server = ClickhouseServer(tmp_path_factory.mktemp("clickhouse"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _no_fault_is_left(clickhouse: ClickhouseServer) -> Iterator[None]:
    yield
    if not clickhouse.running:
        clickhouse.start()
    clickhouse.play(None)
