"""Fixtures of all tests: the private servers, each started at its first use.

`make test` runs whole files side by side, each process with servers of its own. Files whose tests
mostly wait (restarts, backfills, ticks of a daemon) begin first, so that none is left at the end.
"""

import pytest

pytest_plugins = ["tests.servers.queue_fixtures", "tests.servers.object_store_fixtures"]

_LONG_FIRST = (
    "integration/test_whole_way",
    "faults/test_soak",
    "integration/test_backfill",
    "integration/",
    "faults/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file the order stays."""

    def place(item: pytest.Item) -> int:
        found = (n for n, part in enumerate(_LONG_FIRST) if item.nodeid.startswith(f"tests/{part}"))
        return next(found, len(_LONG_FIRST))

    items.sort(key=place)
