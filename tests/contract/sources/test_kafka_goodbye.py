"""A member that leaves its group, at whatever moment: its process goes on, and the group knows.

`close` of the library froze the process, at about each tenth time, when the group had just given
partitions to a member that had not polled since.
"""

from __future__ import annotations

import gc
import os

import pytest

from fuploader_dagster.contracts.source import MessageSource
from fuploader_dagster.testing.source_steps import collect
from tests.contract.sources.kafka_topics import Opened, Topic, ends
from tests.servers.kafka import KafkaServer
from tests.servers.ports import wait_until
from tests.servers.process import thread_names

LONG_SECONDS = 600
ROUNDS = {
    "at once": 1,
    "joining": 1,
    "given partitions": 20,
    "reading": 1,
    "with messages fetched ahead": 1,
}


def clients() -> int:
    """Clients of the library that live in this process."""
    gc.collect()
    return thread_names(os.getpid()).count("rdk:main")


def bring_to(moment: str, source: MessageSource, topic: Topic) -> None:
    if moment == "joining":
        ends(lambda: bool(topic.members()), lambda: "nobody joins")
    elif moment == "given partitions":  # and it has not asked since
        ends(lambda: any(topic.members().values()), lambda: str(topic.members()))
    elif moment == "reading":
        topic.fill(5)
        collect(source, 20)
    elif moment == "with messages fetched ahead":
        topic.fill(2_000)
        collect(source, 20)


@pytest.mark.parametrize("moment", ROUNDS)
@pytest.mark.parametrize("name", ["", "a"], ids=["dynamic", "static"])
def test_a_member_leaves_at_any_moment_and_its_client_ends(
    noida_server: KafkaServer, kafka_opened: Opened, name: str, moment: str
) -> None:
    before = clients()
    for _ in range(ROUNDS[moment]):
        topic = Topic(noida_server, partitions=4)
        source = kafka_opened(topic.settings(session_timeout_seconds=LONG_SECONDS), name)
        bring_to(moment, source, topic)
        source.close()
        if not name:
            ends(lambda: not topic.members(), lambda: str(topic.members()))  # noqa: B023
        elif moment not in ("at once", "joining"):
            assert topic.members() == {name: {0, 1, 2, 3}}
    wait_until(
        lambda: clients() <= before,
        seconds=60,
        what="their end",
        diagnose=lambda: f"{clients()} live",
    )
