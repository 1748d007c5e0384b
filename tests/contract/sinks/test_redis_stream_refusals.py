"""Redis servers that do not take rows: what passes is told from what a person has to put right.

Doctor meets the same, changes nothing, and warns of what may lose entries.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.errors import FuploaderError, SinkRefused, SinkUnavailable
from fuploader_dagster.resources.sinks.redis_stream import RedisStreamSink, ledger_key
from fuploader_dagster.testing.sink_contract import no_reject
from tests.contract.sinks.attempts import AGAIN, DELIVERY, failure, items, wrong
from tests.servers.ports import LOOPBACK, free_port, wait_until
from tests.servers.process import binary
from tests.servers.redis import RedisServer, redis_cluster, redis_configured, redis_replica

SINKS = Path(__file__).parents[3] / "docs" / "sinks.md"
STREAM = "orders"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_configured(tmp_path / "redis") as running:
        yield running


def settings_of(url: str, **more: Any) -> RedisStreamSink:
    values = {"url": url, "stream": STREAM, "timeout_seconds": 3}
    return RedisStreamSink.model_validate({**values, **more})


def refused(url: str, kind: type[FuploaderError], advice: str, **more: Any) -> FuploaderError:
    """An attempt and doctor meet the same, and both say what to do."""
    error = failure(settings_of(url, **more))
    assert type(error) is kind
    assert advice in error.hint
    with pytest.raises(kind) as caught:
        list(settings_of(url, **more).examine())
    assert advice in caught.value.hint
    return error


def length(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.xlen(STREAM))


def test_a_server_that_is_down_or_loses_its_data_to_another_may_come_back(
    server: RedisServer,
) -> None:
    refused(f"redis://{LOOPBACK}:{free_port()}/0", SinkUnavailable, "is Redis running")
    server.kill()
    refused(server.url(), SinkUnavailable, "is Redis running")
    server.start()
    settings_of(server.url()).sink().store(DELIVERY, items(), no_reject)
    assert length(server) == 3


def test_a_server_that_hangs_is_given_up(server: RedisServer) -> None:
    sink = settings_of(server.url(), timeout_seconds=3).sink()
    sink.store(AGAIN, items(), no_reject)
    server.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(SinkUnavailable):
            sink.store(DELIVERY, items(), no_reject)
        assert time.monotonic() - begun < 60
    finally:
        server.resume()


def test_a_replica_is_waited_for_because_it_may_become_the_master(
    server: RedisServer, tmp_path: Path
) -> None:
    with redis_replica(tmp_path / "replica", server) as replica:
        refused(replica.url(), SinkUnavailable, "name the master")
        with replica.client() as client:
            client.replicaof("NO", "ONE")
        settings_of(replica.url()).sink().store(DELIVERY, items(), no_reject)
        assert (length(replica), length(server)) == (3, 0)


def test_a_server_whose_memory_is_full_is_waited_for(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory", 1)
        refused(server.url(), SinkUnavailable, "raise its maxmemory")
        client.config_set("maxmemory", 0)
        assert client.keys() == []
    settings_of(server.url()).sink().store(DELIVERY, items(), no_reject)


def test_memory_that_becomes_full_between_two_steps_costs_no_row(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuploader_dagster.resources.sinks import redis_stream, redis_stream_scripts  # noqa: PLC0415

    settings, run = settings_of(server.url()), redis_stream.run
    with server.client() as client:

        def full(connected: Any, script: str, *arguments: Any) -> Any:
            if script == redis_stream_scripts.MOVE:
                client.config_set("maxmemory", 1)
            return run(connected, script, *arguments)

        monkeypatch.setattr(redis_stream, "run", full)
        assert isinstance(failure(settings), SinkUnavailable)
        assert length(server) == 0
        monkeypatch.undo()
        client.config_set("maxmemory", 0)
    found = settings.sink().store(DELIVERY, iter(()), no_reject)
    assert (found.rows, found.already_there, length(server)) == (3, True, 3)


def test_a_wrong_login_needs_a_person_and_shows_no_password(server: RedisServer) -> None:
    error = refused(server.url_of("nobody", "hunter2"), SinkRefused, "check user and password")
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("suffix", ["", ":ranges"])
def test_a_key_of_another_type_is_refused(server: RedisServer, suffix: str) -> None:
    key = ledger_key("fuploader", STREAM, DELIVERY) + suffix
    with server.client() as client:
        client.set(key, "not ours")
        error = failure(settings_of(server.url()))
        assert isinstance(error, SinkRefused)
        assert "something else uses this key" in error.hint
        client.delete(key)
        client.set(STREAM, "no stream")
    refused(server.url(), SinkRefused, "name another stream")


def documented() -> tuple[list[str], list[str]]:
    """The keys and the commands of the page's `ACL SETUSER`."""
    (line,) = re.findall(r"^ACL SETUSER rows .*$", SINKS.read_text(), re.MULTILINE)
    words = line.split()
    return [w for w in words if w[0] == "~"], [w[1:] for w in words if w[0] == "+"]


def url_of_user(server: RedisServer, commands: list[str], keys: list[str]) -> str:
    user, password = f"user{secrets.token_hex(4)}", secrets.token_hex(8)
    with server.client() as client:
        rights = [*keys, *(f"+{command}" for command in commands)]
        client.execute_command("ACL SETUSER", user, "on", f">{password}", *rights)
        client.script_flush()
        client.acl_log_reset()
    return server.url_of(user, password)


def test_the_documented_rights_are_enough_and_nothing_more_is_tried(server: RedisServer) -> None:
    keys, commands = documented()
    settings = settings_of(url_of_user(server, commands, keys), max_length=100)
    assert wrong(settings) == []
    settings.sink().store(DELIVERY, items(), no_reject)
    settings.sink().store(AGAIN, items(), no_reject)
    assert length(server) == 3
    with server.client() as client:
        assert {entry["object"] for entry in client.acl_log()} <= {"info"}


@pytest.mark.parametrize("missing", [*documented()[1], "the ledger's keys", "the stream"])
def test_each_right_that_is_missing_is_met_by_doctor_and_costs_nothing(
    server: RedisServer, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys, commands = documented()
    stream_key = f"~{STREAM}"
    fewer_keys = [
        key for key in keys if missing not in {"the ledger's keys", "the stream"}
        or (key == stream_key) == (missing == "the ledger's keys")
    ]  # fmt: skip
    poor = url_of_user(server, [one for one in commands if one != missing], fewer_keys)
    with pytest.raises(SinkRefused, match=r"docs/sinks\.md"):
        list(settings_of(poor).examine())
    with server.client() as client:
        assert client.keys() == []
    for delivery in (DELIVERY, AGAIN):
        for _ in range(2):
            try:
                settings_of(poor).sink().store(delivery, items(), no_reject)
            except SinkRefused as error:
                assert "docs/sinks.md" in error.hint
        assert not caplog.records
        settings_of(server.url()).sink().store(delivery, items(), no_reject)
        assert length(server) == 3


def test_of_a_cluster_the_node_that_has_the_stream_is_used_and_the_others_name_it(
    tmp_path: Path,
) -> None:
    with redis_cluster(tmp_path) as nodes:
        with nodes[0].client() as client:
            hash_slot = client.cluster("KEYSLOT", STREAM)
        owner = nodes[next(n for n, first in ((2, 10923), (1, 5461), (0, 0)) if hash_slot >= first)]
        for node in nodes:
            if node is not owner:
                refused(node.url(), SinkRefused, f"{LOOPBACK}:{owner.port}, in the url")
        settings = settings_of(owner.url())
        settings.sink().store(DELIVERY, items(), no_reject)
        settings.sink().store(AGAIN, items(), no_reject)
        assert wrong(settings) == []
        assert length(owner) == 3


def test_a_server_with_tls_and_a_user_is_spoken_to_if_its_certificate_is_trusted(
    tmp_path: Path,
) -> None:
    certificate, key, port = tmp_path / "server.pem", tmp_path / "key.pem", free_port()
    command = [binary("openssl", package="openssl"), "req", "-x509", "-newkey", "rsa:2048"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={LOOPBACK}"]
    command += ["-addext", f"subjectAltName=IP:{LOOPBACK}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    tls = (f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}")
    with redis_configured(tmp_path / "redis", *tls, "tls-auth-clients no") as server:
        keys, commands = documented()
        plain = url_of_user(server, commands, keys)
        url = plain.replace("redis://", "rediss://").replace(f":{server.port}", f":{port}")
        refused(url, SinkRefused, "trust the certificate's issuer")
        settings = settings_of(f"{url}?ssl_ca_certs={certificate}")
        settings.sink().store(DELIVERY, items(), no_reject)
        assert length(server) == 3
        assert settings.describe() == f"stream orders at rediss://{LOOPBACK}:{port}/0"


def test_doctor_warns_of_what_may_lose_entries_or_keep_them_out(server: RedisServer) -> None:
    settings = settings_of(server.url(), max_length=3)
    found = {one.check: one.found for one in settings.examine()}
    assert found["stream"] == f"stream orders at redis://{LOOPBACK}:{server.port}/0: 0 entries"
    settings.sink().store(DELIVERY, items(), no_reject)
    with server.client() as client:
        client.config_set("appendonly", "no")
        wait_until(
            lambda: not client.info("persistence")["aof_enabled"],
            seconds=60,
            what="the server without its file",
            diagnose=lambda: "",
        )
        warned = {one.check: one for one in wrong(settings)}
        assert {one.verdict for one in warned.values()} == {"warning"}
        assert set(warned) == {"length", "persistence"}
        assert "3 entries, max_length 3" in warned["length"].found
        client.config_set("maxmemory", 10**9)
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert {one.check for one in wrong(settings)} == {"length", "persistence", "eviction"}
