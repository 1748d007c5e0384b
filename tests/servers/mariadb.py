"""A private MariaDB on loopback, with its own folder, port and password.

Its settings are the defaults (it syncs each commit), but small. It is not in strict mode, as many
old servers are not, so that the code under test has to see to it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pymysql

from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess, binary

_USER, _DATABASE = "shop", "shop"


class MariadbServer:
    """`start`, `stop` or `kill`, `start` again: port, password and data stay the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.password = free_port(), secrets.token_hex(12)
        self._data = folder / "data"
        # A server that starts removes the temporary tables it finds, another server's too.
        self._temporary = folder / "tmp"
        self._process = ServerProcess("MariaDB", folder / "console.log")

    @property
    def running(self) -> bool:
        return self._process.running

    def url(self, port: int | None = None) -> str:
        """`port`: of a proxy."""
        return self.url_of(_USER, self.password, port)

    def url_of(self, user: str, password: str, port: int | None = None) -> str:
        return f"mysql://{user}:{password}@{LOOPBACK}:{port or self.port}/{_DATABASE}"

    def start(self) -> None:
        if not self._data.exists():
            self._make()
        self._process.start(
            [
                binary("mariadbd", package="mariadb-server"),
                "--no-defaults",
                f"--datadir={self._data}",
                f"--port={self.port}",
                f"--bind-address={LOOPBACK}",
                "--socket=mariadb.sock",  # in the data folder: a longer path may be too long
                "--pid-file=mariadb.pid",
                f"--tmpdir={self._temporary}",
                f"--init-file={self.folder / 'init.sql'}",
                "--skip-name-resolve",
                "--sql-mode=",
                "--innodb-buffer-pool-size=16M",
                "--innodb-log-file-size=16M",
                "--max-allowed-packet=2M",
                *_as_root(),
            ],
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            cwd=self.folder,
            ready=self._answers,
        )

    def stop(self) -> None:
        self._process.stop(60)

    def kill(self) -> None:
        self._process.kill()

    def pause(self) -> None:
        """It hangs: connections stay open, nobody answers."""
        self._process.pause()

    def resume(self) -> None:
        self._process.resume()

    def execute(self, *statements: str) -> None:
        """A plain client, to prepare tables."""
        self._asked(statements)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """A plain client, to look at what the code under test left."""
        return self._asked([query])

    def _asked(self, statements: tuple[str, ...] | list[str]) -> list[tuple[Any, ...]]:
        with self._client() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def _client(self) -> pymysql.Connection[Any]:
        return pymysql.connect(
            host=LOOPBACK,
            port=self.port,
            user=_USER,
            password=self.password,
            database=_DATABASE,
            autocommit=True,
            connect_timeout=5,
        )

    def _make(self) -> None:
        self._temporary.mkdir()
        (self.folder / "init.sql").write_text(
            f"CREATE DATABASE IF NOT EXISTS {_DATABASE} CHARACTER SET utf8mb4;\n"
            f"CREATE USER IF NOT EXISTS '{_USER}'@'%' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO '{_USER}'@'%' WITH GRANT OPTION;\n"
        )
        subprocess.run(
            [
                binary("mariadb-install-db", package="mariadb-server"),
                "--no-defaults",
                f"--datadir={self._data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                f"--tmpdir={self._temporary}",
                *_as_root(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )

    def _answers(self) -> bool:
        try:
            with self._client():
                return True
        except pymysql.err.OperationalError:
            return False


def _as_root() -> list[str]:
    """It runs as root only if it is told to."""
    return ["--user=root"] if os.geteuid() == 0 else []
