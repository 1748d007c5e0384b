"""A private Redis on loopback, with its own folder, port and password.

It writes every command to its append-only file before it answers, so that `kill` and `start` give
the same data again. `flush` empties it, as an operator's mistake would.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import redis

from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess, binary


class RedisServer:
    """`start`, `stop` or `kill`, `start` again: port, password and data stay the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.password = free_port(), secrets.token_urlsafe(12)
        self._program = binary("redis-server", package="redis-server")
        self._process = ServerProcess("Redis", folder / "console.log")
        (folder / "redis.conf").write_text(
            f"bind {LOOPBACK}\nport {self.port}\ndir {folder}\nrequirepass {self.password}\n"
            'save ""\nappendonly yes\ndatabases 64\n'
        )

    @property
    def log(self) -> Path:
        return self._process.log

    @property
    def running(self) -> bool:
        return self._process.running

    def url(self, database: int = 0) -> str:
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def client(self, database: int = 0) -> redis.Redis:
        """A plain client, to look at what the code under test left."""
        return redis.Redis.from_url(self.url(database), decode_responses=True)

    def start(self) -> None:
        self._process.start(
            [self._program, str(self.folder / "redis.conf")],
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            cwd=self.folder,
            ready=self._answers,
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

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False
