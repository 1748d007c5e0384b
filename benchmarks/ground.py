"""What all measurements of a run share: one disk, one RabbitMQ, one Redis, one S3 server.

Servers start at their first use and keep their data on the run's disk. Each measurement has a queue
and a folder of its own, gone when it ends.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from benchmarks.disk import Disk
from benchmarks.documents import documents_of
from benchmarks.results import Row, Spread
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from tests.servers.kafka import KafkaServer, tansu
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PostgresqlServer
from tests.servers.queue_fixtures import channel, new_queue, waiting
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.radosgw import RadosGateway
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer

RABBITMQ_VARIABLE, REDIS_VARIABLE, S3_VARIABLE = "BENCH_RABBITMQ", "BENCH_REDIS", "BENCH_S3_SECRET"
QUEUE_REDIS_VARIABLE, KAFKA_VARIABLE = "BENCH_QUEUE_REDIS", "BENCH_KAFKA"
"""The variables with the secrets and addresses of this run's own servers, for the programs under
measurement."""
FEWEST_MESSAGES = 5000
"""With fewer, a drain is over before it was looked at twice."""

log = Console(stderr=True)
Run = TypeVar("Run")


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    quick: bool = False
    scale: float = 1.0
    repetitions: int = 0
    """Of a drain; other measurements in proportion. 0: five."""

    def messages(self, full: int, quick: int | None = None) -> int:
        """A number of messages, enough to see something."""
        wanted = (quick if self.quick and quick is not None else full) * self.scale
        return max(round(wanted), FEWEST_MESSAGES)

    def times(self, full: int = 5, quick: int = 3) -> int:
        fitting = quick if self.quick else full
        return math.ceil(fitting * self.repetitions / 5) if self.repetitions else fitting


@dataclass(frozen=True)
class Runs(Generic[Run]):
    """The repetitions of one measurement."""

    runs: Sequence[Run] = ()
    problem: str = ""
    """Why there are none, or fewer than asked for."""

    def spread(self, value: Callable[[Run], float]) -> Spread | None:
        return Spread.of(value(run) for run in self.runs)


def ratio_of_rounds(ratios: Spread | None) -> str:
    """For the note of a row whose sides were measured in turns: it hides that the machine becomes
    slower or faster meanwhile."""
    return f"median of the rounds' own ratios {ratios.median:.2f}" if ratios else ""


def row_of_rounds(
    row: Row,
    sides: Runs[dict[str, Run]],
    other: str,
    figure: Callable[[Run], float],
    said: str = "",
) -> Row:
    """The row with a figure of `ours` beside that of another side, which were measured in turns."""
    ratios = sides.spread(lambda one: figure(one["ours"]) / figure(one[other]))
    return replace(
        row,
        ours=sides.spread(lambda one: figure(one["ours"])),
        bare=sides.spread(lambda one: figure(one[other])),
        against="bare",
        note=note(said, ratio_of_rounds(ratios), sides),
    )


def note(*parts: str | Runs[Any]) -> str:
    """The note of a row: sentences, and the problems of its measurements."""
    said = [part if isinstance(part, str) else part.problem for part in parts]
    return "; ".join(one for one in dict.fromkeys(said) if one)


@dataclass
class Ground:
    """Use as a context manager: stops the servers it started."""

    disk: Disk
    sizes: Sizes
    failures: int = 0
    _kept: dict[object, object] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def rabbitmq(self) -> RabbitMQServer:
        server = RabbitMQServer(self._server_folder("rabbitmq"))
        self._stack.callback(server.stop)
        server.start()
        os.environ[RABBITMQ_VARIABLE] = server.url
        return server

    @cached_property
    def redis(self) -> RedisServer:
        server = RedisServer(self._server_folder("redis"))
        self._stack.callback(server.stop)
        server.start()
        os.environ[REDIS_VARIABLE] = server.url()
        return server

    @cached_property
    def queue_redis(self) -> RedisServer:
        """For queues; `redis` is for states."""
        server = RedisServer(self._server_folder("queue-redis"))
        self._stack.callback(server.stop)
        server.start()
        os.environ[QUEUE_REDIS_VARIABLE] = server.url()
        return server

    @cached_property
    def kafka(self) -> KafkaServer:
        """Tansu: noida-db answers a fetch with all that a partition has, however much that is."""
        server = tansu(self._server_folder("kafka"))
        self._stack.callback(server.stop)
        server.start()
        os.environ[KAFKA_VARIABLE] = server.bootstrap
        return server

    @cached_property
    def swift(self) -> SwiftServer:
        server = SwiftServer(self._server_folder("swift"))
        self._stack.callback(server.stop)
        server.start()
        os.environ[S3_VARIABLE] = server.secret_key
        return server

    @cached_property
    def radosgw(self) -> RadosGateway:
        server = RadosGateway(self._server_folder("radosgw"))
        self._stack.callback(server.stop)
        server.start()
        return server

    @cached_property
    def postgresql(self) -> PostgresqlServer:
        server = PostgresqlServer(self._server_folder("postgresql") / "log")
        self._stack.callback(server.remove)
        server.start()
        return server

    @cached_property
    def mariadb(self) -> MariadbServer:
        server = MariadbServer(self._server_folder("mariadb"))
        self._stack.callback(server.stop)
        server.start()
        return server

    @property
    def broker_session(self) -> int:
        """The broker's process, which is the first of its session."""
        return int((self.rabbitmq.folder / "pid").read_text())

    @contextmanager
    def backlog(self, payload_bytes: int, messages: int) -> Iterator[str]:
        """The name of a durable classic queue with this many persistent messages."""
        queue = new_queue(self.rabbitmq)
        publisher = RabbitMQ(queue=queue, url=self.rabbitmq.url).publisher()
        try:
            publisher.publish(documents_of(payload_bytes).messages(messages))
            publisher.close()
            yield queue
        finally:
            with channel(self.rabbitmq) as open_channel:
                open_channel.queue_delete(queue)

    def waiting(self, queue: str) -> int:
        return waiting(self.rabbitmq, queue)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder on the run's disk; afterwards it is gone and the disk is in sync."""
        folder = self.disk.folder / f"run-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
            os.sync()

    def repeat(self, what: str, measure: Callable[[], Run], times: int) -> Runs[Run]:
        """Measure several times; a failure is reported and leaves an empty place."""
        runs: list[Run] = []
        for number in range(1, times + 1):
            log.print(f"[dim]{what}[/dim] {number} of {times}", highlight=False)
            try:
                runs.append(measure())
            except Exception as error:  # noqa: BLE001  the edge: one failure must not end the run
                return Runs(runs, self.failed(f"{what}, repetition {number}", error))
        return Runs(runs)

    def rounds(
        self, what: str, measures: Mapping[str, Callable[[], Run]], times: int
    ) -> Runs[dict[str, Run]]:
        """Measure all in turns; each round begins with another one."""
        numbers = itertools.count()

        def one_round() -> dict[str, Run]:
            first = next(numbers) % len(measures)
            names = list(measures)
            return {name: measures[name]() for name in [*names[first:], *names[:first]]}

        return self.repeat(what, one_round, times)

    def failed(self, what: str, error: Exception) -> str:
        """Count and show a failure; returns its note."""
        self.failures += 1
        log.print("".join(traceback.format_exception(error)), markup=False)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"{what} could not be measured: {reason}"

    def keep(self, key: object, make: Callable[[], Runs[Run]]) -> Runs[Run]:
        """Make a measurement that several rows need once a run."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]

    def _server_folder(self, name: str) -> Path:
        folder = self.disk.folder / name
        folder.mkdir()
        return folder
