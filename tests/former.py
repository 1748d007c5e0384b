"""FUploader, killed at a chosen moment, and what is there before and after `fuploader migrate`.

`python -m tests.former SEED` runs every mode with every moment and prints the table that stands in
docs/migrating-from-fuploader.md.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dagster import EnvVar

from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.errors import MigrationNeeded
from fuploader_dagster.intake.leftovers import refuse_leftovers
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.takeover import Takeover
from fuploader_dagster.standalone import ship_pipeline
from fuploader_dagster.takeover.staging import taken_over
from tests import fuploader_app
from tests.drains import backlog, draining, publish_bodies, wait_until_handled
from tests.servers.ports import wait_until
from tests.servers.queue_fixtures import channel, new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer

S3_VARIABLE = "FORMER_TEST_S3_SECRET"
TASK, NODE, KEY_PREFIX = "aweme", "box1", "file_uploader:aweme:"
MOMENTS = (
    "written",
    "counted",
    "moved to sealed",
    "switched",
    "queued",
    "taken from the queue",
    "half packed",
    "packed",
    "named",
    "stored",
    "archive removed",
    "half removed",
    "recovering",
    "recovered",
    "any",
)
SECOND_START = ("recovering", "recovered")
Contents = Counter[tuple[str, bytes]]


@dataclass(frozen=True)
class Mode:
    """One of the ways in which FUploader can be set up."""

    layout: str = "legacy_meta"
    key_style: str = "legacy_meta"
    ready_format: str = "legacy_slot"
    processes: int = 1

    def __str__(self) -> str:
        many = f", {self.processes} supervised" if self.processes > 1 else ""
        return f"{self.layout}, {self.key_style} keys, {self.ready_format}{many}"


def runs() -> Iterator[tuple[Mode, str]]:
    """Every mode with every moment; the two forms of ready entries take turns."""
    ways = itertools.product(("legacy_meta", "flat_slot"), ("legacy_meta", "default"), (1, 2))
    for number, (layout, key_style, processes) in enumerate(ways):
        for turn, moment in enumerate(MOMENTS):
            ready_format = ("legacy_slot", "colon")[(number + turn) % 2]
            yield Mode(layout, key_style, ready_format, processes), moment


@dataclass(frozen=True)
class Servers:
    rabbitmq: RabbitMQServer
    redis: RedisServer
    swift: SwiftServer


@dataclass
class Former:
    """One FUploader with its queue, bucket, root and Redis database."""

    servers: Servers
    folder: Path
    mode: Mode
    task: str = field(default_factory=lambda: f"{TASK}_{secrets.token_hex(3)}")
    refuse_uploads: bool = False

    def __post_init__(self) -> None:
        self.queue = new_queue(self.servers.rabbitmq)
        self.bucket = self.servers.swift.fresh_bucket()
        self.root = self.folder / "root"
        self.key_prefix = f"{KEY_PREFIX}{self.task}:"

    @contextmanager
    def running(
        self, moment: str = "", times: int = 1, *, recover: bool = True
    ) -> Iterator[subprocess.Popen[bytes]]:
        """FUploader runs inside the block; at its end it is killed with all of its processes."""
        rabbitmq, redis, swift = self.servers.rabbitmq, self.servers.redis, self.servers.swift
        settings = {
            "moment": moment,
            "times": times,
            "root": str(self.root),
            "task": self.task,
            "node": NODE,
            "layout": self.mode.layout,
            "key_style": self.mode.key_style,
            "key_prefix": self.key_prefix,
            "ready_format": self.mode.ready_format,
            "processes": self.mode.processes,
            "supervised": self.mode.processes > 1,
            "pack_threshold": 20,
            "recover": recover,
            "refuse_uploads": self.refuse_uploads,
            "rabbitmq": {
                "host": "127.0.0.1",
                "port": rabbitmq.port,
                "user": rabbitmq.user,
                "password": rabbitmq.password,
                "queue_name": self.queue,
            },
            "redis": {"host": "127.0.0.1", "port": redis.port, "password": redis.password},
            "s3": {
                "bucket": self.bucket,
                "region": "us-east-1",
                "endpoint": swift.endpoint,
                "access_key_id": swift.access_key,
                "access_key_secret": swift.secret_key,
            },
        }
        with (self.folder / "fuploader.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuploader_app"],
                env={**os.environ, "FUPLOADER_APP": json.dumps(settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(120)

    def die_at(self, moment: str, dice: random.Random) -> None:
        """Run it until it dies at this moment, if it comes to it."""
        alone = self.mode.processes == 1
        first = dice.randint(1, 110 if alone else 40)
        if moment in SECOND_START:
            self._die("written", max(first, 25), recover=self._recovers_first())
            to_move = len(list(self.root.rglob("*.json")))
            if moment == "recovering" and to_move:
                self._die(moment, dice.randint(1, min(20, to_move)), recover=True)
            else:
                self._die("recovered", 1, recover=True)
        elif moment == "any":
            with self.running(recover=self._recovers_first()) as process:
                self._wait(lambda: self.root.exists() and any(self.root.rglob("*.json")), process)
                time.sleep(dice.uniform(0, 1.2))
        else:
            often = moment in ("written", "counted")
            times = first if often else dice.randint(1, 2 if alone else 1)
            self._die(moment, times, recover=self._recovers_first())

    def _recovers_first(self) -> bool:
        return self.mode.layout == "legacy_meta"

    def _die(self, moment: str, times: int, *, recover: bool) -> None:
        with self.running(moment, times, recover=recover) as process:
            self._wait(lambda: process.poll() is not None, process)

    def _wait(self, ready: Any, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
        def diagnose() -> str:
            return (self.folder / "fuploader.log").read_text()[-3000:]

        wait_until(ready, seconds=seconds, what="FUploader", diagnose=diagnose)

    def pipeline(self, **values: Any) -> Pipeline:
        """Ours, pointed at the same root, Redis, queue and bucket."""
        swift = self.servers.swift
        os.environ[S3_VARIABLE] = swift.secret_key
        return Pipeline(
            **{
                "name": "docs",
                "node_id": NODE,
                "storage_root": self.root,
                "source": RabbitMQ(url=self.servers.rabbitmq.url, queue=self.queue),
                "state": RedisState(url=self.servers.redis.url(), key_prefix=f"ours-{self.task}"),
                "store": S3(
                    bucket=self.bucket,
                    endpoint_url=swift.endpoint,
                    region="us-east-1",
                    access_key_id=swift.access_key,
                    secret_access_key=EnvVar(S3_VARIABLE),
                ),
                "key": fuploader_app.remote_key,
                "takeover": Takeover(task_name=self.task, key_prefix=self.key_prefix),
                "min_free_bytes": 1024,
                "retry_delay_seconds": 0.01,
                **values,
            }
        )

    def configuration(self, **values: object) -> dict[str, object]:
        """The same as somebody writes it who comes from FUploader."""
        docs = {
            "node_id": NODE,
            "source": {"kind": "rabbitmq", "url": {"env": "RABBITMQ_URL"}, "queue": self.queue},
            "state": {
                "kind": "redis",
                "url": {"env": "REDIS_URL"},
                "key_prefix": f"ours-{self.task}",
            },
            "store": {
                "kind": "s3",
                "bucket": self.bucket,
                "endpoint_url": self.servers.swift.endpoint,
                "region": "us-east-1",
                "access_key_id": self.servers.swift.access_key,
                "secret_access_key": {"env": S3_VARIABLE},
            },
            "key": "aweme/{sealed_at:%Y%m%d}/{archive}",
            "takeover": {"task_name": self.task, "key_prefix": self.key_prefix},
            "min_free_bytes": 1024,
            **values,
        }
        return {"storage_root": str(self.root), "pipelines": {"docs": docs}}

    def environment(self) -> dict[str, str]:
        """The secrets that the configuration names."""
        return {
            "RABBITMQ_URL": self.servers.rabbitmq.url,
            "REDIS_URL": self.servers.redis.url(),
            S3_VARIABLE: self.servers.swift.secret_key,
        }

    def migrate(self, configuration: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`fuploader migrate --yes`."""
        path = configuration or self.folder / "fuploader.yaml"
        if configuration is None:
            path.write_text(yaml.safe_dump(self.configuration()))
        fuploader = Path(sys.executable).with_name("fuploader")
        return subprocess.run(
            [str(fuploader), "migrate", "--yes", "--config", str(path)],
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def keys(self) -> list[str]:
        """FUploader's keys that are in Redis."""
        with self.servers.redis.client() as client:
            return sorted(
                key
                for key in client.scan_iter(count=1000)
                if key.startswith((f"{self.task}:meta:", self.key_prefix))
            )

    def on_disk(self) -> Contents:
        """Files in FUploader's directories."""
        found: Contents = Counter()
        for path in self.root.rglob("*"):
            inside = path.relative_to(self.root).parts
            if path.is_file() and inside[0] != "docs" and path.suffix != ".zst":
                found[(path.name, path.read_bytes())] += 1
        return found

    def in_store(self) -> Contents:
        """Files in all archives in the bucket."""
        found: Contents = Counter()
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            client = self.servers.swift.client()
            for entry in client.list_objects_v2(Bucket=self.bucket).get("Contents", []):
                target = Path(folder, entry["Key"])
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(self.bucket, entry["Key"], str(target))
            for archive in Path(folder).rglob("*.tar.zst"):
                command = ["zstd", "-dc", str(archive)]
                tar = subprocess.run(command, capture_output=True, check=True).stdout
                with tarfile.open(fileobj=io.BytesIO(tar)) as members:
                    for member in members:  # FUploader packs the directory itself too
                        if file := members.extractfile(member):
                            found[(member.name.rpartition("/")[2], file.read())] += 1
        return found


def messages(count: int, dice: random.Random) -> dict[str, bytes]:
    """Files of three types: what FUploader writes for what a producer sent."""
    made = {}
    for number in range(count):
        if number % 7 == 5:
            made[f"m{number:04d}.bin"] = dice.randbytes(dice.randrange(2000))
        elif number % 7 == 6:
            made[f"m{number:04d}.txt"] = f"text {number} äöü".encode()
        else:
            document = {"id": number, "text": "字" * dice.randrange(500)}
            made[f"m{number:04d}.json"] = json.dumps(document, ensure_ascii=False).encode()
    return made


def encoded(files: dict[str, bytes]) -> list[bytes]:
    """The files as messages of a producer."""
    kinds = {"json": "json", "bin": "bytes", "txt": "text"}
    return [encode(name, body, kinds[name[-4:].lstrip(".")]) for name, body in files.items()]


@dataclass(frozen=True)
class Outcome:
    """What a death and a take-over came to. Counts of files."""

    lost_by_fuploader: int
    """Acknowledged, and neither on its disk, nor in the store, nor in the queue."""
    doubled_by_fuploader: int
    refused: bool
    """Started in place of FUploader, the pipeline refused and named the command."""
    adopted: int
    lost: int
    """Was there when FUploader died, and is not in the store at the end."""
    doubled: int
    """Was stored once more by the take-over than there were different files."""
    redelivered_twice: int
    """Came again from the queue and was stored a second time."""
    keys_left: tuple[str, ...]
    left_on_disk: tuple[str, ...]


def take_over_after(
    former: Former, moment: str, dice: random.Random, *, count: int = 120
) -> Outcome:
    """Let FUploader die at the moment, migrate, drain and ship all; say what came of it."""
    published = messages(count, dice)
    settings = former.pipeline()
    publish_bodies(settings.intake(), encoded(published))
    former.die_at(moment, dice)
    wait_until(
        lambda: not _consumers(former), seconds=120, what="the broker", diagnose=lambda: moment
    )
    disk, store = former.on_disk(), former.in_store()
    waiting = backlog(settings.intake())
    there = disk + store
    everything = Counter(published.items())
    missing = everything.keys() - there.keys()
    refused = refuses(settings)
    migrated = former.migrate()
    assert migrated.returncode == 0, migrated
    refuse_leftovers(settings)
    ship_all(settings)
    after = former.in_store()
    lost = there.keys() - after.keys()
    doubled = sum((after - _at_least_once(store, there)).values())
    drain_rest(settings, waiting)
    ship_all(settings)
    final = former.in_store()
    lost |= there.keys() - final.keys()
    left = [
        str(path.relative_to(former.root))
        for path in former.root.rglob("*")
        if path.relative_to(former.root).parts[0] != "docs"
    ]
    return Outcome(
        lost_by_fuploader=len(missing - final.keys()),
        doubled_by_fuploader=sum((store - Counter(store.keys())).values()),
        refused=refused,
        adopted=sum(one.files for one in taken_over(settings.layout)),
        lost=len(lost),
        doubled=doubled,
        redelivered_twice=sum((final - after).values()) - len(final.keys() - after.keys()),
        keys_left=tuple(former.keys()),
        left_on_disk=tuple(left),
    )


def refuses(settings: Pipeline) -> bool:
    """Whether the pipeline does not start, and says what to do."""
    try:
        ship_pipeline(settings)
    except MigrationNeeded as error:
        return "`fuploader migrate --pipeline docs`" in str(error)
    return False


def _at_least_once(store: Contents, there: Contents) -> Contents:
    """What the store may hold after the take-over: what it had, and the rest once."""
    return store + Counter(there.keys() - store.keys())


def _consumers(former: Former) -> int:
    with channel(former.servers.rabbitmq) as open_channel:
        declared = open_channel.queue_declare(former.queue, passive=True)
        return int(declared.method.consumer_count)


def drain_rest(settings: Pipeline, waiting: int) -> None:
    """Have our workers take what is in the queue, and seal it."""
    intake = settings.intake()
    if waiting:
        with draining(intake):
            wait_until_handled(intake, waiting)
    seal_on_request(intake)


def ship_all(settings: Pipeline) -> None:
    """Ship everything that is sealed; every slot gets through."""
    outcomes = list(ship(settings, settings.store.open()))
    assert all(isinstance(outcome, Done) for outcome in outcomes), outcomes


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    chosen = sys.argv[2:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = [folder / server for server in ("rabbitmq", "redis", "swift")]
        for one in folders:
            one.mkdir()
        servers = Servers(
            RabbitMQServer(folders[0]), RedisServer(folders[1]), SwiftServer(folders[2])
        )
        try:
            for server in (servers.rabbitmq, servers.redis, servers.swift):
                server.start()
            for mode, moment in runs():
                if chosen and moment not in chosen:
                    continue
                own = folder / secrets.token_hex(4)
                own.mkdir()
                dice = random.Random(f"{seed} {mode} {moment}")
                try:
                    outcome = take_over_after(Former(servers, own, mode), moment, dice)
                    row = {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}
                except Exception as error:
                    row = {"error": f"{type(error).__name__}: {error}"}
                print(json.dumps({"mode": str(mode), "moment": moment, **row}), flush=True)
        finally:
            for server in (servers.swift, servers.redis, servers.rabbitmq):
                server.stop()


if __name__ == "__main__":
    main()
