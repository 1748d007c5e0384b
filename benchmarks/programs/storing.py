"""Stores documents as rows of a table, in one of four ways, and prints what it took.

Settings come as JSON in BENCH_SETTINGS; the database's address is in BENCH_DATABASE. `how`:

- `ours`: the sink `rows` of the pipeline in `config`, for its `partitions`.
- `executemany`: one call of the driver's own `executemany`, with rows made of the JSON of `items`
  documents, which are in memory before the time begins.
- `orm`: an object and a commit for each of them, with SQLAlchemy.
- `unpacked`: each of `archives` is decompressed, its members' JSON becomes rows, and these are
  stored with one `executemany` and one commit an archive.

The time ends with the last commit.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.documents import documents_of
from benchmarks.programs.resident import resident_bytes

DATABASE_VARIABLE = "BENCH_DATABASE"
TABLE = "documents"
COLUMNS = {"id": "id", "author": "author.name", "likes": "statistics.likes", "body": "text"}
"""Columns and the fields that they get, as in the setting of a sink."""

Run = Callable[[], None]


def main() -> None:
    settings = json.loads(os.environ["BENCH_SETTINGS"])
    run = _WAYS[settings["how"]](settings)
    resident = resident_bytes("VmRSS")
    started = time.monotonic()
    run()
    seconds = time.monotonic() - started
    grown = resident_bytes("VmHWM") - resident
    print(json.dumps({"seconds": seconds, "grown_bytes": grown}))


def _row(content: bytes) -> tuple[object, ...]:
    found = json.loads(content)
    return found["id"], found["author"]["name"], found["statistics"]["likes"], found["text"]


def _contents(settings: dict[str, Any]) -> Sequence[bytes]:
    documents = documents_of(2000)
    return [documents.content(number) for number in range(settings["items"])]


def _ours(settings: dict[str, Any]) -> Run:
    from fuploader_dagster.delivery.attempts import Done  # noqa: PLC0415  the others do without
    from fuploader_dagster.delivery.find_archive import ArchiveFinder  # noqa: PLC0415
    from fuploader_dagster.delivery.rows import store_partitions  # noqa: PLC0415
    from fuploader_dagster.settings.loading import load_pipelines  # noqa: PLC0415

    pipelines = load_pipelines(Path(settings["config"]))
    (pipeline,) = pipelines.values()
    finder = ArchiveFinder(pipelines)
    _connected().close()  # not the time to load the driver

    def run() -> None:
        for outcome in store_partitions(settings["partitions"], pipeline, "rows", finder.open):
            if not isinstance(outcome, Done) or outcome.rows is None:
                sys.exit(f"not stored: {outcome}")

    return run


def _executemany(settings: dict[str, Any]) -> Run:
    contents = _contents(settings)
    connection = _connected()

    def run() -> None:
        _insert(connection, map(_row, contents))

    return run


def _orm(settings: dict[str, Any]) -> Run:
    from sqlalchemy import orm  # noqa: PLC0415  the others do without

    contents = _contents(settings)
    engine = sa.create_engine(_url())
    registry = orm.registry()
    table = sa.Table(TABLE, registry.metadata, autoload_with=engine)

    class Document:
        pass

    # The table has no primary key; the ORM needs to be told of one.
    registry.map_imperatively(Document, table, primary_key=[table.c.id])

    def run() -> None:
        for content in contents:
            document = Document()
            for column, value in zip(COLUMNS, _row(content), strict=True):
                setattr(document, column, value)
            with orm.Session(engine) as session:
                session.add(document)
                session.commit()

    return run


def _unpacked(settings: dict[str, Any]) -> Run:
    import zstandard  # noqa: PLC0415  the others do without

    connection = _connected()

    def run() -> None:
        for path in settings["archives"]:
            with Path(path).open("rb") as packed:
                stream = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    found = (archive.extractfile(member) for member in archive)
                    _insert(connection, (_row(file.read()) for file in found if file is not None))

    return run


_WAYS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "ours": _ours,
    "executemany": _executemany,
    "orm": _orm,
    "unpacked": _unpacked,
}


def _url() -> sa.URL:
    url = sa.make_url(os.environ[DATABASE_VARIABLE])
    drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    return url.set(drivername=drivers.get(url.drivername, url.drivername))


def _connected() -> Any:
    """A connection of the driver's own, with `executemany` in a transaction."""
    url = _url()
    if url.drivername == "sqlite":
        return sqlite3.connect(str(url.database))
    login: dict[str, Any] = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
    }
    if url.drivername.startswith("postgresql"):
        import psycopg  # noqa: PLC0415  the others do without

        return psycopg.connect(**login, dbname=url.database)
    import pymysql  # noqa: PLC0415  the others do without

    return pymysql.connect(**login, database=url.database, charset="utf8mb4")


def _insert(connection: Any, rows: Iterable[tuple[object, ...]]) -> None:
    mark = "?" if isinstance(connection, sqlite3.Connection) else "%s"
    marks = ", ".join([mark] * len(COLUMNS))
    cursor = connection.cursor()
    cursor.executemany(
        f"INSERT INTO {TABLE} ({', '.join(COLUMNS)}) VALUES ({marks})",  # noqa: S608  all ours
        list(rows),
    )
    connection.commit()


if __name__ == "__main__":
    main()
