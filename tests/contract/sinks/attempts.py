"""Attempts to store three good rows, and users and clients of a server, for tests of what fails."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import psycopg
import pymysql

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.sink import Delivery, ItemRows, SinkSettings
from fuploader_dagster.errors import FuploaderError
from tests.contract.sinks.broken_attempts import failure_of
from tests.contract.sinks.databases import Database
from tests.servers.mariadb import MariadbServer
from tests.servers.ports import LOOPBACK
from tests.servers.postgresql import PostgresqlServer

COLUMNS = "id INTEGER PRIMARY KEY, name VARCHAR(100) NOT NULL, slot VARCHAR(100)"
DELIVERY = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017")
AGAIN = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017", redo=1)


def items(count: int = 3) -> Iterator[ItemRows]:
    for number in range(count):
        yield ItemRows(number, [{"id": number, "name": "n"}])


def failure(settings: SinkSettings, delivery: Delivery = DELIVERY) -> FuploaderError:
    """What storing three good rows fails with."""
    return failure_of(settings, delivery, items())


def wrong(settings: SinkSettings) -> list[Diagnosis]:
    return [one for one in settings.examine() if one.verdict != "good"]


def new_user(database: PostgresqlServer | MariadbServer, *grants: str, limit: str = "") -> str:
    """The url of a new user who may only connect, and what is granted."""
    name, password = f"user_{secrets.token_hex(4)}", secrets.token_hex(8)
    if isinstance(database, PostgresqlServer):
        database.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' {limit}")
        user = name
    else:
        user = f"{name}@'%'"
        database.execute(f"CREATE USER {user} IDENTIFIED BY '{password}'")
        database.execute("CREATE TABLE IF NOT EXISTS open_to_all (id INTEGER)")
        database.execute(f"GRANT SELECT ON open_to_all TO {user}")
    database.execute(*(grant.format(user=user) for grant in grants))
    return database.url_of(name, password)


def user_of(url: str, database: Database) -> str:
    name = url.partition("//")[2].partition(":")[0]
    return f"{name}@'%'" if isinstance(database, MariadbServer) else name


def client_of(database: Database, url: str) -> Any:
    if isinstance(database, PostgresqlServer):
        return psycopg.connect(url)
    assert isinstance(database, MariadbServer)
    user, _, password = url.partition("//")[2].partition("@")[0].partition(":")
    return pymysql.connect(
        host=LOOPBACK, port=database.port, user=user, password=password, database="shop"
    )
