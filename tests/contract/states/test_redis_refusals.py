"""Redis servers that refuse us: each is said in our words, of the right kind, and doctor meets it.

The kinds: `StateUnavailable` passes by itself, `StateRefused` needs a person. Doctor's look and the
drain's first steps go to the same keys with the same commands, so both are tried everywhere.
"""

from __future__ import annotations

import socketserver
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from fuploader_dagster.contracts.diagnosis import Diagnosis, Verdict, trouble
from fuploader_dagster.contracts.state import Claim, Commit, SlotCount
from fuploader_dagster.errors import FuploaderError, StateRefused, StateUnavailable
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.resources.states.redis_errors import explained
from fuploader_dagster.takeover.former_redis import FormerRedis
from tests.servers.ports import LOOPBACK, answers, free_port, wait_until
from tests.servers.redis import (
    RedisServer,
    redis_cluster,
    redis_configured,
    redis_replica,
)

PIPELINE, NODE = "docs", "local"


def drained(settings: RedisState) -> None:
    """A worker's steps from its start to its end."""
    store = settings.store(pipeline=PIPELINE, node=NODE)
    try:
        store.open()
        store.highest_number(0)
        (claim,) = store.take([Claim(0, "root", "here", 1, "a1")], 30)
        store.add_sealed(["key"])
        store.record(
            Commit(slots=[SlotCount(0, 1, 1, 1)], stored_messages=1, claims=[claim]),
            root_id="root",
            ttl_seconds=30,
        )
        assert store.sealed(1) == ["key"]
        store.forget_sealed(["key"])
        store.snapshot()
        store.give_back([claim])
    finally:
        store.close()


def looked(settings: RedisState) -> dict[str, Diagnosis]:
    """What doctor finds."""
    found: dict[str, Diagnosis] = {}
    try:
        for one in settings.examine_for(pipeline=PIPELINE, node=NODE):
            found[one.check] = one
    except FuploaderError as error:
        found["state"] = trouble("state", error)
    return found


def refused(url: str, kind: type[FuploaderError], advice: str) -> None:
    """Drain and doctor meet the same, and both say what to do."""
    settings = RedisState(url=url, timeout_seconds=3)  # type: ignore[arg-type]
    with pytest.raises(kind) as caught:
        drained(settings)
    assert type(caught.value) is kind
    assert advice in caught.value.hint
    found = looked(settings)["state"]
    assert found.verdict == ("wrong" if kind is StateRefused else "unreachable")
    assert advice in found.hint


def test_a_server_that_forbids_what_no_pipeline_needs_is_used_as_it_is(tmp_path: Path) -> None:
    forbidden = ("CLIENT", "HELLO", "INFO", "CONFIG", "SCRIPT", "MONITOR", "COMMAND")
    lines = [f'rename-command {command} ""' for command in forbidden]
    with redis_configured(tmp_path / "redis", *lines) as server:
        settings = RedisState(url=server.url(3))  # type: ignore[arg-type]
        drained(settings)
        found = looked(settings)
        assert found["state"].verdict == "good"
        assert "are unknown" in found["state server"].found


def test_a_connection_sends_nothing_but_what_was_asked_for(tmp_path: Path) -> None:
    with (
        redis_configured(tmp_path / "redis") as redis_server,
        redis_server.client() as client,
    ):
        settings = RedisState(url=redis_server.url())  # type: ignore[arg-type]
        client.config_resetstat()
        drained(settings)
        sent = set(client.info("commandstats"))
    introductions = {one for one in sent if "client" in one or "hello" in one or "script" in one}
    assert not introductions


@pytest.mark.parametrize("command", ["EVAL", "EVALSHA"])
def test_a_server_without_scripts_is_refused_with_what_it_must_allow(
    tmp_path: Path, command: str
) -> None:
    with redis_configured(tmp_path / "redis", f'rename-command {command} ""') as server:
        refused(server.url(), StateRefused, "allow the commands listed")


def test_a_replica_names_the_master_as_what_to_use(tmp_path: Path) -> None:
    with (
        redis_configured(tmp_path / "master") as master,
        redis_replica(tmp_path / "replica", master) as replica,
    ):
        refused(replica.url(), StateRefused, "name the master")
        with replica.client() as client:
            client.config_set("replica-serve-stale-data", "no")
            master.kill()
            wait_until(
                lambda: client.info("replication")["master_link_status"] == "down",
                seconds=60,
                what="the replica's loss",
                diagnose=lambda: "",
            )
        refused(replica.url(), StateUnavailable, "lost its master")


def test_of_a_cluster_the_node_that_keeps_the_keys_is_used_and_the_others_name_it(
    tmp_path: Path,
) -> None:
    with redis_cluster(tmp_path) as nodes:
        with nodes[0].client() as client:
            hash_slot = client.cluster("KEYSLOT", f"fuploader:{{{PIPELINE}:{NODE}}}:slots")
        owner = nodes[next(n for n, first in ((2, 10923), (1, 5461), (0, 0)) if hash_slot >= first)]
        for node in nodes:
            if node is not owner:
                refused(node.url(), StateRefused, f"{LOOPBACK}:{owner.port}, in the url")
        drained(RedisState(url=owner.url()))  # type: ignore[arg-type]
        found = looked(RedisState(url=owner.url()))  # type: ignore[arg-type]
        assert found["state"].verdict == "good"
        assert "node of a cluster" in found["state server"].found
        refused(owner.url(1), StateRefused, "a cluster has no other")
        owner_index = nodes.index(owner)
        witness = nodes[owner_index - 1]
        owner.kill()
        with witness.client() as client:
            wait_until(
                lambda: "fail" in str(client.cluster("INFO").get("cluster_state")),
                seconds=120,
                what="the cluster's failure",
                diagnose=lambda: "",
            )
        refused(witness.url(), StateUnavailable, "bring back the nodes")


def test_of_keys_that_move_between_nodes_it_is_said_that_this_passes(tmp_path: Path) -> None:
    """ASK, while a hash slot is handed to another node and the keys are not here."""
    with redis_cluster(tmp_path) as nodes, ExitStack() as stack:
        clients = [stack.enter_context(node.client()) for node in nodes]
        hash_slot = clients[0].cluster("KEYSLOT", f"{{{PIPELINE}:{NODE}}}")
        number = next(n for n, first in ((2, 10923), (1, 5461), (0, 0)) if hash_slot >= first)
        target = str(clients[number - 1].cluster("MYID"))
        clients[number].cluster("SETSLOT", hash_slot, "MIGRATING", target)
        refused(nodes[number].url(), StateUnavailable, "is moving these keys")


def test_a_server_that_cannot_save_says_so(tmp_path: Path) -> None:
    with redis_configured(tmp_path / "redis", "appendonly no", "save 1 1") as server:
        dump = server.folder / "dump.rdb"
        dump.unlink(missing_ok=True)
        (dump / "in the way").mkdir(parents=True)
        with server.client() as client:
            client.set("any", "change")
            wait_until(
                lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err",
                seconds=60,
                what="a failed save",
                diagnose=lambda: "",
            )
        refused(server.url(), StateRefused, "cannot write to its own disk")


def test_a_server_whose_memory_is_full_says_so(tmp_path: Path) -> None:
    with redis_configured(tmp_path / "redis", "maxmemory 1") as server:
        refused(server.url(), StateRefused, "raise its maxmemory")
        with server.client() as client:
            assert client.keys() == []


def test_a_server_that_wants_replicas_says_so(tmp_path: Path) -> None:
    with redis_configured(tmp_path / "redis", "min-replicas-to-write 1") as server:
        refused(server.url(), StateUnavailable, "without its replicas")


def test_a_server_with_all_the_clients_it_may_have_says_so(tmp_path: Path) -> None:
    with redis_configured(tmp_path / "redis") as server, server.client() as client:
        client.config_set("maxclients", 1)
        refused(server.url(), StateUnavailable, "raise its maxclients")


def test_a_server_that_loads_its_data_is_waited_for(tmp_path: Path) -> None:
    slowly = ("key-load-delay 10000", "loading-process-events-interval-bytes 1024")
    with redis_configured(tmp_path / "redis", *slowly) as server:
        with server.client() as client, client.pipeline() as many:
            for number in range(3_000):
                many.set(f"key {number}", "value")
            many.execute()
            client.bgrewriteaof()
            wait_until(
                lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0,
                seconds=60,
                what="the rewritten file",
                diagnose=lambda: "",
            )
        server.kill()
        server.start(loading=True)
        refused(server.url(), StateUnavailable, "is loading its data")


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("redis://{host}/0", "check user and password"),
        ("redis://:wrong@{host}/0", "check user and password"),
        ("redis://nobody:{password}@{host}/0", "check user and password"),
        ("redis://:{password}@{host}/4711", "name a database"),
    ],
)
def test_a_wrong_login_or_database_needs_a_person_and_shows_no_password(
    redis_server: RedisServer, url: str, advice: str
) -> None:
    host = f"{LOOPBACK}:{redis_server.port}"
    refused(url.format(host=host, password=redis_server.password), StateRefused, advice)


def test_a_server_that_repeats_the_password_in_its_error_is_not_quoted(tmp_path: Path) -> None:
    class WithoutLogin(RedisServer):
        def _answers(self, *, loading: bool) -> bool:
            return answers(self.port)

    server = WithoutLogin(tmp_path, 'rename-command AUTH ""')
    server.start()
    try:
        settings = RedisState(url=server.url())  # type: ignore[arg-type]
        with pytest.raises(StateRefused, match="unknown command 'AUTH'") as caught:
            drained(settings)
        assert server.password not in str(caught.value)
        assert server.password not in looked(settings)["state"].found
        former = FormerRedis(settings.url)
        with pytest.raises(StateRefused, match="unknown command 'AUTH'") as caught:
            former.dump("task:")
        assert server.password not in str(caught.value)
    finally:
        server.kill()


def test_a_server_of_something_else_is_no_redis() -> None:
    class Web(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1_000)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socketserver.TCPServer((LOOPBACK, free_port()), Web) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"{LOOPBACK}:{web.server_address[1]}/0"
        refused(f"redis://{address}", StateRefused, "is not Redis")
        refused(f"rediss://{address}", StateRefused, "does not speak TLS")
        web.shutdown()


def test_nobody_there_and_a_redis_without_tls_that_keeps_silent_may_pass(
    redis_server: RedisServer,
) -> None:
    refused(f"rediss://{LOOPBACK}:{redis_server.port}/0", StateUnavailable, "speaks TLS")
    refused(f"redis://{LOOPBACK}:{free_port()}/0", StateUnavailable, "is Redis running")


@pytest.mark.parametrize("name", ["slots", "highest", "claims", "sealed", "totals"])
def test_a_key_of_another_type_is_named(redis_server: RedisServer, name: str) -> None:
    settings = RedisState(url=redis_server.url(), key_prefix=f"other-{name}")  # type: ignore[arg-type]
    key = f"other-{name}:{{{PIPELINE}:{NODE}}}:{name}"
    with redis_server.client() as client:
        client.set(key, "not ours")
    with pytest.raises(StateRefused, match="something else uses") as caught:
        drained(settings)
    assert f"key {key} failed" in caught.value.message
    found = looked(settings)["state"]
    verdict: Verdict = "wrong"
    assert (found.verdict, key in found.found) == (verdict, True)


def test_an_answer_of_a_server_before_version_7_is_understood() -> None:
    """There the word stands in the middle when a script met it."""
    words = "Error running script (call to f_0): @user_script:20: @user_script: 20: -READONLY You"
    for said, kind in (
        (f"{words} can't write against a read only replica.", StateRefused),
        (words.replace("READONLY", "OOM"), StateRefused),
        (words.replace("READONLY", "MISCONF"), StateRefused),
        (words.replace("READONLY", "LOADING"), StateUnavailable),
        (words.replace("READONLY", "NOREPLICAS"), StateUnavailable),
    ):
        assert type(explained(redis.ResponseError(said), "Redis")) is kind
