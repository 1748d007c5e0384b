"""One ClickHouse a session. A test that kills or pauses it brings it back before it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.clickhouse.attempts import FAULTS_PLAYED
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up the faults that tests have played and survived."""
    played: Counter[tuple[str, str]] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, found in report.user_properties:
            if name == FAULTS_PLAYED:
                for kind, what, times in found:
                    played[kind, what] += times
    if not played:
        return
    terminalreporter.section("faults after which each row was stored once")
    terminalreporter.write_line(f"{'fault':15}{'played':>8}{'found':>8}{'stored':>8}")
    for kind in sorted({one for one, _ in played}):
        found, stored = played[kind, "found"], played[kind, "stored"]
        terminalreporter.write_line(f"{kind:15}{found + stored:>8}{found:>8}{stored:>8}")
    terminalreporter.write_line(f"{'all':15}{played.total():>8}")
