"""A private Redis on loopback, with its own folder, port and password.

It writes commands to its append-only file, mostly before it answers, so that `kill` and `start`
give the same data again; with the lines `DURABLE` always, also while its disk is slow. `flush`
empties it, as an operator's mistake would. `redis_configured` starts one with more lines in its
redis.conf, `redis_replica` a replica, `redis_watched` both with a Sentinel, `redis_cluster` three
nodes that share the hash slots.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from tests.servers.ports import LOOPBACK, free_port, wait_until
from tests.servers.process import ServerProcess, binary

DURABLE = ("appendfsync always",)
"""By default Redis waits with the file for up to two seconds if the disk is slow, and answers."""


class RedisServer:
    """`start`, `stop` or `kill`, `start` again: port, password and data stay the same."""

    def __init__(
        self, folder: Path, *more: str, password: str = "", program: str | None = None
    ) -> None:
        """`more`: lines for redis.conf; `program`: another one than Debian's."""
        self.folder = folder
        self.port, self.password = free_port(), password or secrets.token_urlsafe(12)
        self._program = program or binary("redis-server", package="redis-server")
        self._process = ServerProcess("Redis", folder / "console.log")
        (folder / "redis.conf").write_text(
            f"bind {LOOPBACK}\nport {self.port}\ndir {folder}\nrequirepass {self.password}\n"
            'save ""\nappendonly yes\ndatabases 64\n' + "".join(f"{line}\n" for line in more)
        )

    @property
    def log(self) -> Path:
        return self._process.log

    @property
    def running(self) -> bool:
        return self._process.running

    def url(self, database: int = 0) -> str:
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def url_of(self, user: str, password: str) -> str:
        """For another user than the one who may do everything."""
        return f"redis://{user}:{password}@{LOOPBACK}:{self.port}/0"

    def client(self, database: int = 0) -> redis.Redis:
        """A plain client, to look at what the code under test left."""
        return redis.Redis.from_url(self.url(database), decode_responses=True, protocol=2)

    def start(self, *, loading: bool = False) -> None:
        """Return when it is ready; with `loading` when it answers, and be it that it loads."""
        self._process.start(
            [self._program, str(self.folder / "redis.conf")],
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            cwd=self.folder,
            ready=lambda: self._answers(loading=loading),
        )

    def stop(self) -> None:
        self._process.stop(10)

    def kill(self) -> None:
        self._process.kill()

    def pause(self) -> None:
        """It hangs: connections stay open, nobody answers."""
        self._process.pause()

    def resume(self) -> None:
        self._process.resume()

    def flush(self) -> None:
        """Everything in it is gone."""
        with self.client() as client:
            client.flushall()

    def empty(self) -> None:
        """While it is down: it will come back with nothing in it."""
        assert not self.running
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        (self.folder / "appendonly.aof").unlink(missing_ok=True)  # before version 7

    def _answers(self, *, loading: bool) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.BusyLoadingError:
            return loading
        except redis.exceptions.RedisError:
            return False


@contextmanager
def redis_configured(
    folder: Path, *lines: str, password: str = "", program: str | None = None
) -> Iterator[RedisServer]:
    """A server of one's own, with these lines in its configuration."""
    folder.mkdir(parents=True)
    server = RedisServer(folder, *lines, password=password, program=program)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def redis_replica(folder: Path, master: RedisServer) -> Iterator[RedisServer]:
    """A replica that has caught up with its master."""
    lines = (f"replicaof {LOOPBACK} {master.port}", f"masterauth {master.password}")
    with (
        redis_configured(folder, *lines, password=master.password) as replica,
        replica.client() as client,
    ):
        wait_until(
            lambda: client.info("replication").get("master_link_status") == "up",
            seconds=60,
            what="the replica",
            diagnose=lambda: str(client.info("replication")),
        )
        yield replica


class RedisSentinel:
    """One Sentinel, which alone decides that a master is gone, after a second."""

    NAME = "main"

    def __init__(self, folder: Path, master: RedisServer) -> None:
        folder.mkdir(parents=True)
        self.port, self.password = free_port(), master.password
        self._folder, self._program = folder, binary("redis-server", package="redis-server")
        self._process = ServerProcess("Sentinel", folder / "console.log")
        lines = [
            f"bind {LOOPBACK}\nport {self.port}\ndir {folder}\nrequirepass of-the-sentinel",
            f"sentinel monitor {self.NAME} {LOOPBACK} {master.port} 1",
            f"sentinel auth-pass {self.NAME} {master.password}",
            f"sentinel down-after-milliseconds {self.NAME} 1000",
            f"sentinel failover-timeout {self.NAME} 5000",
        ]
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")

    @property
    def log(self) -> Path:
        return self._process.log

    def url(self) -> str:
        """A second address, where nobody is, stands before it."""
        places = f"{LOOPBACK}:{free_port()},{LOOPBACK}:{self.port}"
        name = f"{self.NAME}/0?sentinel_password=of-the-sentinel"
        return f"redis+sentinel://:{self.password}@{places}/{name}"

    def client(self) -> redis.Redis:
        return redis.Redis(
            host=LOOPBACK, port=self.port, password="of-the-sentinel", decode_responses=True
        )

    def master_port(self) -> int:
        with self.client() as client:
            return int(client.sentinel_get_master_addr_by_name(self.NAME)[1])

    def start(self) -> None:
        self._process.start(
            [self._program, str(self._folder / "sentinel.conf"), "--sentinel"],
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
            cwd=self._folder,
            ready=self._knows_a_replica,
        )

    def kill(self) -> None:
        self._process.kill()

    def _knows_a_replica(self) -> bool:
        try:
            with self.client() as client:
                found = client.sentinel_slaves(self.NAME)
        except redis.exceptions.RedisError:
            return False
        return any(one.get("master-link-status") == "ok" for one in found)


@contextmanager
def redis_watched(folder: Path) -> Iterator[tuple[RedisServer, RedisServer, RedisSentinel]]:
    """A master, a replica of it, and a Sentinel that watches both."""
    lines = ("repl-diskless-sync-delay 0",)
    with (
        redis_configured(folder / "master", *lines) as first,
        redis_replica(folder / "replica", first) as second,
    ):
        sentinel = RedisSentinel(folder / "sentinel", first)
        try:
            sentinel.start()
            yield first, second, sentinel
        finally:
            sentinel.kill()


@contextmanager
def redis_cluster(folder: Path) -> Iterator[Sequence[RedisServer]]:
    """Three masters, each with a third of the hash slots."""
    bus_ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                redis_configured(
                    folder / f"port{port}", "cluster-enabled yes", f"cluster-port {port}"
                )
            )
            for port in bus_ports
        ]
        clients = [stack.enter_context(node.client()) for node in nodes]
        thirds = ((0, 5460), (5461, 10922), (10923, 16383))
        for client, node, bus_port, third in zip(clients, nodes, bus_ports, thirds, strict=True):
            client.execute_command("CLUSTER ADDSLOTSRANGE", *third)
            clients[0].execute_command("CLUSTER MEET", LOOPBACK, node.port, bus_port)

        def told() -> list[str]:
            return [str(client.execute_command("CLUSTER INFO")) for client in clients]

        wait_until(
            lambda: all(re.search(r"cluster_state\W+ok", one) for one in told()),
            seconds=120,
            what="the cluster",
            diagnose=lambda: "\n".join(told()),
        )
        yield nodes
