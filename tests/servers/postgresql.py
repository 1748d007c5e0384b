"""A private PostgreSQL on loopback, with its own folder, port and password.

It refuses to run as root, so root starts it as `nobody`, in a folder under the system's temporary
folder, because `nobody` may not enter pytest's. Its settings are the defaults (it syncs), but
small. `kill` ends the server and its backends at once, as a crash of the machine would.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess, binary, children_of

_USER, _DATABASE = "shop", "shop"
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "40",
    "shared_buffers": "16MB",
    "min_wal_size": "32MB",
    "max_wal_size": "128MB",
    "autovacuum": "off",
    "log_min_messages": "log",
}


class PostgresqlServer:
    """`start`, `stop` or `kill`, `start` again: port, password and data stay the same."""

    def __init__(self, log: Path) -> None:
        self.port, self.password = free_port(), secrets.token_urlsafe(12)
        self._folder = Path(tempfile.mkdtemp(prefix="fuploader-postgresql-"))
        self._data = self._folder / "data"
        self._process = ServerProcess("PostgreSQL", log)

    @property
    def running(self) -> bool:
        return self._process.running

    def url(self, port: int | None = None) -> str:
        """`port`: of a proxy."""
        return self.url_of(_USER, self.password, port)

    def url_of(self, user: str, password: str, port: int | None = None) -> str:
        return f"postgresql://{user}:{password}@{LOOPBACK}:{port or self.port}/{_DATABASE}"

    def start(self) -> None:
        if not self._data.exists():
            self._make()
        self._process.start(
            [*_as_another(), _program("postgres"), "-D", str(self._data)],
            env=_environment(),
            cwd=self._folder,
            ready=self._answers,
        )

    def stop(self) -> None:
        """As systemd does: it waits for nobody, and what was not committed is gone."""
        if self.running:
            os.kill(self._process.pid, signal.SIGINT)
        self._process.stop(30)

    def kill(self) -> None:
        if not self.running:
            return
        self._process.pause()  # it must not start new backends, nor notice that they end
        for child in self._children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.kill()

    def pause(self) -> None:
        """It hangs: connections stay open, nobody answers."""
        self._process.pause()
        for child in self._children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)

    def resume(self) -> None:
        for child in self._children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
        self._process.resume()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def execute(self, *statements: str) -> None:
        """A plain client, to prepare tables."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """A plain client, to look at what the code under test left."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def _make(self) -> None:
        self._folder.chmod(0o755)
        password = self._folder / "password"
        password.write_text(self.password)
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")
        subprocess.run(
            [
                *_as_another(),
                _program("initdb"),
                f"--pgdata={self._data}",
                f"--username={_USER}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            env=_environment(),
            check=True,
            capture_output=True,
            timeout=120,
        )
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(f"port = {self.port}\n")
            settings.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())

    def _answers(self) -> bool:
        address = f"postgresql://{_USER}:{self.password}@{LOOPBACK}:{self.port}"
        try:
            with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
                found = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]
                ).fetchone()
                if found is None:
                    connection.execute(f"CREATE DATABASE {_DATABASE}".encode())
        except psycopg.OperationalError:
            return False
        return True

    def _children(self) -> Collection[int]:
        return children_of(self._process.pid) if self.running else ()


def _program(name: str) -> str:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))  # Debian's, by version
    return binary(name, *map(str, reversed(installed)), package="postgresql")


def _as_another() -> Sequence[str]:
    if os.geteuid() != 0:
        return []
    setpriv = binary("setpriv", package="util-linux")
    return [setpriv, "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C"}
