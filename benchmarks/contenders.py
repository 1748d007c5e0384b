"""The two contenders: how each is configured and started, and how it reports its progress.

`OURS` and `FUPLOADER` give the settings in full, so that a reader can object. Both count in
Redis what they have handled, and that is what is read from outside while they run.
"""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml

from benchmarks.ground import REDIS_VARIABLE, S3_VARIABLE, Ground
from benchmarks.processes import Program
from benchmarks.queues import Kind, source_of
from fuploader_dagster.settings.loading import load_pipeline
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.index import INDEX_NAME, read_index

REPOSITORY = Path(__file__).parents[1]
NEVER = 1_000_000_000
PIPELINE = "bench"

# Tried: prefetch 50 to 1,000 and 4 to 50 writing threads. They differ less than repetitions do: the
# time goes to one coroutine, one Redis round trip and one acknowledgement for each message.
FUPLOADER_TUNED: dict[str, Any] = {
    "prefetch_count": 200,
    "write_concurrency": 20,
    "packer_concurrency": 4,
    "packer_interval": 0.2,
    # Each rotation ends the process and starts another, which costs it more than a second.
    "meta_writer_max_tasks_per_child": 0,
}
FUPLOADER_AS_DOCUMENTED: dict[str, Any] = {
    "save_timeout": 5.0,
    "packer_concurrency": 4,
    "packer_interval": 2.0,
    "packer_max_retries": 3,
    "meta_writer_max_tasks_per_child": 0,
}
"""The example of its page. Rotation after 1,000 messages, its default, is off here too: with it the
supervised processes lose messages, and a run that loses messages is no measurement."""


class Contender(Protocol):
    """What drain and whole way are measured on."""

    def start(self) -> Program:
        """Begin to drain."""
        ...

    def handled(self) -> int:
        """Messages of the active slots and, where it counts them, of earlier ones."""
        ...

    def on_disk(self) -> int:
        """Messages in its folders."""
        ...


@dataclass(frozen=True)
class Ours:
    """This project: `fuploader drain`, with its defaults unless stated otherwise."""

    ground: Ground
    folder: Path
    queue: str
    settings: dict[str, Any] = field(default_factory=dict)
    bucket: str | None = None
    source: Kind = "rabbitmq"

    @cached_property
    def values(self) -> dict[str, Any]:
        """The configuration of the pipeline, as in the file."""
        self.ground.rabbitmq, self.ground.redis  # noqa: B018  started, and their secrets known
        store: dict[str, Any] = {"kind": "local", "path": str(self.folder / "objects")}
        if self.bucket is not None:
            swift = self.ground.swift
            store = {
                "kind": "s3",
                "bucket": self.bucket,
                "endpoint_url": swift.endpoint,
                "region": swift.region,
                "access_key_id": swift.access_key,
                "secret_access_key": {"env": S3_VARIABLE},
            }
        return {
            "storage_root": str(self.folder / "data"),
            "source": source_of(self.source, self.queue),
            "state": {
                "kind": "redis",
                "url": {"env": REDIS_VARIABLE},
                "key_prefix": f"ours-{secrets.token_hex(4)}",
            },
            "store": store,
            **self.settings,
        }

    @cached_property
    def pipeline(self) -> Pipeline:
        return load_pipeline({**self.values, "name": PIPELINE}, where="benchmark")

    @cached_property
    def configuration(self) -> Path:
        path = self.folder / "fuploader.yaml"
        path.write_text(yaml.safe_dump({"pipelines": {PIPELINE: self.values}}))
        return path

    @cached_property
    def _state(self) -> Any:
        state = self.pipeline.state.store(pipeline=PIPELINE, node=self.pipeline.node)
        state.open()
        return state

    def start(self) -> Program:
        fuploader = Path(sys.executable).with_name("fuploader")
        return Program(
            [str(fuploader), "drain", "--config", str(self.configuration)],
            env={},
            cwd=self.folder,
            log=self.folder / "drain.log",
        )

    def start_shipping(self) -> Program:
        """Ship what is sealed, beside the drain."""
        module = "benchmarks.programs.shipper"
        return Program(
            [sys.executable, "-m", module, str(self.configuration), PIPELINE],
            env={},
            cwd=REPOSITORY,
            log=self.folder / "ship.log",
        )

    def handled(self) -> int:
        return int(self._state.snapshot().stored_messages)

    def stored(self) -> list[int]:
        """Messages of each archive that the store has confirmed."""
        receipts = self.pipeline.layout.receipts.glob("*.jsonl")
        lines = [line for path in receipts for line in path.read_text().splitlines()]
        return [json.loads(line)["messages"] for line in lines]

    def on_disk(self) -> int:
        indexes = self.pipeline.layout.root.rglob(INDEX_NAME)
        return sum(len(read_index(index.read_bytes()).entries) for index in indexes)


@dataclass(frozen=True)
class FUploader:
    """FUploader 1.0.5; with `supervised`, under its own supervisor with this many processes."""

    ground: Ground
    folder: Path
    queue: str
    config: dict[str, Any]
    process_count: int = 1
    supervised: bool = False
    bucket: str = "never-used"
    task: str = field(default_factory=lambda: f"task-{secrets.token_hex(4)}")

    NODE = "bench"

    @cached_property
    def _client(self) -> Any:
        return self.ground.redis.client()

    def start(self) -> Program:
        rabbitmq, redis, swift = self.ground.rabbitmq, self.ground.redis, self.ground.swift
        settings = {
            "task": self.task,
            "node": self.NODE,
            "process_count": self.process_count,
            "supervised": self.supervised,
            "storage_root": str(self.folder / "data"),
            "config": self.config,
            "rabbitmq": {
                "host": "127.0.0.1",
                "port": rabbitmq.port,
                "user": rabbitmq.user,
                "password": rabbitmq.password,
                "queue_name": self.queue,
                "prefetch_count": self.config.get("prefetch_count", 50),
            },
            "redis": {"host": "127.0.0.1", "port": redis.port, "password": redis.password},
            "s3": {
                "bucket": self.bucket,
                "region": swift.region,
                "endpoint": swift.endpoint,
                "access_key_id": swift.access_key,
                "access_key_secret": swift.secret_key,
            },
        }
        return Program(
            [sys.executable, "-m", "benchmarks.programs.fuploader_app"],
            env={"BENCH_SETTINGS": json.dumps(settings)},
            cwd=REPOSITORY,
            log=self.folder / "fuploader.log",
        )

    def handled(self) -> int:
        keys = [
            f"{self.task}:meta:{self.NODE}:slot:{slot}:active_count"
            for slot in range(self.process_count)
        ]
        return sum(int(count or 0) for count in self._client.mget(keys))

    def on_disk(self) -> int:
        return sum(1 for _ in (self.folder / "data").rglob("*.json"))
