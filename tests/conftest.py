"""Fixtures and habits of all tests: private servers, each started at its first use, and one seed.

`make test` runs whole files side by side, each process with servers of its own. Files whose tests
mostly wait (restarts, backfills, ticks of a daemon) begin first, so that none is left at the end.

pytest-randomly shuffles the other files, and the tests within each file. It prints its seed, which
hypothesis takes as well, so `make test SEED=n` repeats a run: its order and its examples. How quick
a machine is decides nothing: no example has a deadline, and what waits, waits for a condition
(`tests.servers.ports.wait_until`).

A test that its timeout cannot end, because it stands still outside Python, ends its process, which
prints where each thread is. pytest-xdist says which test that was and goes on with the others.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
from collections.abc import Generator

import hypothesis
import pytest

pytest_plugins = [
    "tests.servers.queue_fixtures",
    "tests.servers.object_store_fixtures",
    "tests.servers.database_fixtures",
    "tests.servers.kafka",
]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # The tests were started in the background. Programs that they start would take that over, and
    # Ctrl-C would not reach them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")

_LONG_FIRST = (
    "integration/test_sinks_whole_way",
    "faults/test_soak",
    "faults/test_object_store_faults",
    "integration/test_whole_way",
    "faults/test_network_cut",
    "faults/test_crash_points",
    "integration/test_backfill",
    "code_location/test_sqlite_history",
    "integration/",
    "faults/",
    "contract/",
    "code_location/",
)


_STDERR = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """One seed for the order and the examples, before either plugin makes its own."""
    config.stash[_STDERR] = os.dup(2)  # during a test, what is written there is captured
    if not config.pluginmanager.hasplugin("randomly"):
        return
    if config.option.randomly_seed == "default":
        config.option.randomly_seed = random.SystemRandom().getrandbits(32)
    # A process of xdist's is told by the one that started it.
    seed = getattr(config, "workerinput", vars(config.option))["randomly_seed"]
    if seed != "last" and getattr(config.option, "hypothesis_seed", seed) is None:
        config.option.hypothesis_seed = str(seed)


def watch(item: pytest.Item) -> None:
    """From a thread that needs no lock of Python's."""
    mark = item.get_closest_marker("timeout")
    seconds = float(mark.args[0] if mark else item.config.getini("timeout"))
    stderr = item.config.stash[_STDERR]
    faulthandler.dump_traceback_later(1.2 * seconds, exit=True, file=stderr)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    watch(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    watch(item)  # pytest ends it when a test fails


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; among the others and within a file the order stays as it was shuffled."""

    def place(item: pytest.Item) -> int:
        found = (n for n, part in enumerate(_LONG_FIRST) if item.nodeid.startswith(f"tests/{part}"))
        return next(found, len(_LONG_FIRST))

    items.sort(key=place)
