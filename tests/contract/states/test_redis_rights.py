"""The rights in Redis that docs/operations.md lists are enough, and none is too many."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuploader_dagster.errors import StateRefused
from fuploader_dagster.resources.states.redis import RedisState
from tests.contract.states.test_redis_refusals import NODE, PIPELINE, drained, looked
from tests.drains import backlog, draining, embedded, files, publish, snapshot, wait_for
from tests.servers.redis import RedisServer, redis_configured

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def documented() -> tuple[list[str], list[str]]:
    """The key pattern and the commands of the page's `ACL SETUSER`."""
    (line,) = re.findall(r"^ACL SETUSER .*$", OPERATIONS.read_text(), re.MULTILINE)
    words = line.split()
    return [w for w in words if w[0] == "~"], [w[1:] for w in words if w[0] == "+"]


@dataclass
class LeastRights:
    """A user with rights of one's choice, on a server that knows no script yet."""

    server: RedisServer

    def settings(self, commands: list[str], keys: list[str]) -> RedisState:
        user, password = f"user{secrets.token_hex(4)}", secrets.token_hex(8)
        rights = [*keys, *(f"+{command}" for command in commands)]
        with self.server.client() as client:
            client.execute_command("ACL SETUSER", user, "on", f">{password}", *rights)
            client.script_flush()
        return RedisState(url=self.server.url_of(user, password))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeastRights]:
    with redis_configured(tmp_path_factory.mktemp("rights") / "redis") as server:
        yield LeastRights(server)


def test_the_documented_rights_are_enough_for_a_whole_drain_and_nothing_more_is_tried(
    least: LeastRights, tmp_path: Path
) -> None:
    keys, commands = documented()
    state = least.settings(commands, keys)
    with least.server.client() as client:
        client.flushall()
        client.acl_log_reset()
    drained(state)
    settings = embedded(tmp_path, state=state, name=PIPELINE)
    contents = files(50)
    publish(settings, contents)
    with draining(settings):
        wait_for(lambda: backlog(settings) == 0, settings, "the drain")
    assert snapshot(settings).stored_messages == 51
    found = looked(state)
    assert {one.verdict for one in found.values()} == {"good"}
    with least.server.client() as client:
        refused = {entry["object"] for entry in client.acl_log()}
    assert refused == {"info", "config|get"}  # which doctor alone asks for


@pytest.mark.parametrize("missing", documented()[1])
def test_none_of_them_is_too_many_and_doctor_meets_each_that_is_missing_and_leaves_nothing(
    least: LeastRights, missing: str
) -> None:
    keys, commands = documented()
    fewer = [command for command in commands if command != missing]
    with pytest.raises(StateRefused, match="the commands and keys listed"):
        drained(least.settings(fewer, keys))
    with least.server.client() as client:
        client.flushall()
        found = looked(least.settings(fewer, keys))["state"]
        assert found.verdict == "wrong"
        assert "the commands and keys listed" in found.hint
        assert client.keys() == []


def test_rights_on_the_keys_of_another_pipeline_are_no_rights_on_these(least: LeastRights) -> None:
    """A probe of keys of doctor's own would find this in order."""
    _, commands = documented()
    ours = f"~fuploader:{{{PIPELINE}:{NODE}}}:*"
    assert looked(least.settings(commands, [ours]))["state"].verdict == "good"
    for others in ("~fuploader:{fuploader-doctor:doctor}:*", "~fuploader:{other:local}:*"):
        assert looked(least.settings(commands, [others]))["state"].verdict == "wrong"
    highest_only = [ours.replace("*", name) for name in ("highest", "slots", "sealed", "totals")]
    assert looked(least.settings(commands, highest_only))["state"].verdict == "wrong"


def test_doctor_beside_a_drain_changes_nothing_of_it(redis_server: RedisServer) -> None:
    settings = RedisState(url=redis_server.url(), key_prefix=f"p{secrets.token_hex(4)}")  # type: ignore[arg-type]
    drained(settings)
    with redis_server.client() as client:
        before = {key: client.dump(key) for key in client.keys(f"{settings.key_prefix}:*")}
        assert looked(settings)["state"].verdict == "good"
        assert {key: client.dump(key) for key in client.keys(f"{settings.key_prefix}:*")} == before


def test_who_may_not_see_keys_of_another_program_is_told_that_there_are_none(
    least: LeastRights,
) -> None:
    keys, commands = documented()
    with least.server.client() as client:
        client.set("file_uploader:slot:0", "theirs")
    others = ["file_uploader:slot:0", "file_uploader:queue:ready"]
    assert not least.settings(commands, keys).holds_any(others)
    assert not least.settings([*commands, "exists"], keys).holds_any(others)
    allowed = least.settings([*commands, "exists"], [*keys, "~file_uploader:*"])
    assert allowed.holds_any(others)
    assert not allowed.holds_any(others[1:])
