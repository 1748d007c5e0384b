"""The project that the person looks after: three pipelines under `fuploader dev`."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from fuploader_dagster.catalog.catalog import Catalog
from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from tests.servers.dagster_dev import DagsterDev
from tests.servers.http_handler import Call, HttpHandlerServer
from tests.servers.ports import LOOPBACK
from tests.servers.swift import SwiftServer

APP = """
import time
from fuploader_dagster import Item, Result, processor

@processor
def thumbnail(item: Item) -> Result:
    time.sleep(0.02)
    return Result(item.content[:20], f"{item.name}.thumbnail", content_type="text/plain")
"""
FILE_BYTES = 2000
TASKS, FILES_PER_TASK = 5, 100


async def _file(call: Call) -> web.StreamResponse:
    await asyncio.sleep(0.02)
    content = call.request.path.encode().ljust(FILE_BYTES, b".")
    return await call.reply(200, content, Content_Type="text/plain")


class Project:
    """Use as a context manager.

    `documents`: envelopes into an S3 bucket. `pages`: processed by functions. `tasks`: downloads,
    an archive for each task.
    """

    def __init__(self, folder: Path, store: SwiftServer) -> None:
        self.folder = folder
        self.store = store
        self.origin = HttpHandlerServer()
        self.origin.answer = _file
        each = {"commit_messages": 50, "seal_age_seconds": 5, "recovery_base_seconds": 2}
        fetch = {"kind": "fetch", "urls": "task_info", "allow_hosts": [LOOPBACK]}
        self.configuration: dict[str, Any] = {
            "storage_root": "data",
            "pipelines": {
                "documents": {
                    **_parts("documents"),
                    **each,
                    "store": store.settings(kind="s3"),
                    "seal_messages": 100,
                    "max_dead_letters_per_hour": 5,
                },
                "pages": {
                    **_parts("pages"),
                    **each,
                    "message_format": "raw",
                    "seal_messages": 100,
                    "process": {"kind": "functions", "module": "app", "workers": 1},
                },
                "tasks": {
                    **_parts("tasks"),
                    "message_format": "raw",
                    "seal_each": "message",
                    "process": fetch,
                },
            },
        }
        folder.mkdir()
        (folder / "app.py").write_text(APP)
        environment = {"TEST_SECRET": store.secret_key}
        self.dev = DagsterDev(folder, self.configuration, environment)

    def __enter__(self) -> Project:
        self.origin.__enter__()
        try:
            self.dev.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.dev.stop()
        finally:
            self.origin.__exit__(None, None, None)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.dev.port}"

    def publish(self, pipeline: str, messages: Iterable[tuple[bytes, dict[str, Any]]]) -> None:
        queue = EmbeddedQueue(path=self.folder / "queues" / pipeline)
        with closing(queue.publisher()) as publisher:
            publisher.publish(messages)

    def documents(self, prefix: str, count: int) -> None:
        """Publish documents of this name."""
        names = (f"{prefix}-{number:04d}.json" for number in range(count))
        contents = (
            (name, json.dumps({"name": name, "title": f"title of {name}"})) for name in names
        )
        self.publish(
            "documents", ((encode(name, text.encode(), "bytes"), {}) for name, text in contents)
        )

    def bad_documents(self, count: int) -> None:
        self.publish("documents", ((b"no envelope %d" % n, {}) for n in range(count)))

    def pages(self, count: int) -> None:
        self.publish(
            "pages",
            (
                (json.dumps({"id": n, "title": f"page {n}"}).encode(), {"message_id": f"page-{n}"})
                for n in range(count)
            ),
        )

    def tasks(self) -> None:
        """Publish tasks of many addresses."""
        base = f"http://{LOOPBACK}:{self.origin.port}"
        for task in range(1, TASKS + 1):
            files = [
                {"url": f"{base}/{task}/{n}", "fn": f"{task}-{n}.txt"}
                for n in range(FILES_PER_TASK)
            ]
            body = json.dumps({"task_info": files}).encode()
            self.publish("tasks", [(body, {"message_id": f"task-{task}.json"})])

    def add_sink(self) -> None:
        """Write a sink of `documents` into the configuration: rows in a table of a file."""
        with closing(sqlite3.connect(self.folder / "rows.sqlite")) as database:
            database.execute("CREATE TABLE documents (name TEXT PRIMARY KEY, title TEXT NOT NULL)")
        path = self.folder / "fuploader.yaml"
        written = yaml.safe_load(path.read_text())
        rows: dict[str, Any] = {"kind": "sql", "url": "sqlite:///rows.sqlite", "table": "documents"}
        rows["key"] = ["name"]  # those that were replayed come a second time
        written["pipelines"]["documents"]["sinks"] = {"rows": rows}
        path.write_text(yaml.safe_dump(written))

    def rows(self, prefix: str) -> int:
        query = "SELECT count(*) FROM documents WHERE name LIKE ?"
        with closing(sqlite3.connect(self.folder / "rows.sqlite", timeout=60)) as database:
            return int(database.execute(query, [f"{prefix}-%"]).fetchone()[0])

    def stored(self, pipeline: str) -> list[dict[str, Any]]:
        """The receipts of a pipeline."""
        receipts = (self.folder / "data" / pipeline / "receipts").glob("*.jsonl")
        lines = [line for path in receipts for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def has_stored(self, prefix: str, count: int) -> bool:
        """Whether at least this many documents of this name are in archives, by the catalog."""
        path = Layout(self.folder / "data" / "documents").catalog
        if not path.exists():
            return False
        with Catalog.to_read(path) as names:
            return sum(1 for _ in names.find(f"{prefix}-*")) >= count

    def is_drained(self, pipeline: str) -> bool:
        return bool(read_statuses(Layout(self.folder / "data" / pipeline)))

    def backfills(self) -> list[str]:
        """Their states."""
        found = self.dev.query(
            "{ partitionBackfillsOrError { ... on PartitionBackfills { results { status } } } }"
        )
        return [one["status"] for one in found["partitionBackfillsOrError"]["results"]]

    def dead_letters(self, pipeline: str) -> int:
        """How many were ever kept."""
        layout = Layout(self.folder / "data" / pipeline)
        return sum(1 for _ in numbered_dead_letters(layout))

    def messages_stored(self, pipeline: str) -> int:
        return sum(one["messages"] for one in self.stored(pipeline))


def _parts(name: str) -> dict[str, Any]:
    return {
        "source": {"kind": "embedded", "path": f"queues/{name}"},
        "state": {"kind": "sqlite", "path": f"states/{name}.sqlite"},
        "store": {"kind": "local", "path": f"objects/{name}"},
    }
