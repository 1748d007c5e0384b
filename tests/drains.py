"""Drains for tests: a queue with messages, workers under a supervisor, and what came out.

What came out is read without the code under test: segments by tarfile, files as files.
`python -m tests.drains` is a process that supervises, for tests that kill it: an `Intake` comes in
through its stdin, and it renews the lease until the stdin closes.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fuploader_dagster.contracts.state import Snapshot
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.intake.supervisor import Supervisor
from fuploader_dagster.intake.worker_status import WorkerStatus, read_statuses
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.processing.producer import DecodedFilePayload, parse_file_message
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.settings.loading import load_intake
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.index import INDEX_NAME, read_index
from fuploader_dagster.slots.sealing import Seal, read_seal
from tests.servers.ports import wait_until
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.settings import intake

MARK = 1024
"""Free space that every machine has: the tests of full disks set another one."""
KILLS = int(os.environ.get("KILLS", "6"))
"""Of workers, per test; more of them by this variable."""
_SERVER_EVERY = 3


def on_servers(
    rabbitmq: RabbitMQServer, redis: RedisServer, queue_type: str = "classic"
) -> dict[str, Any]:
    """Settings for a new RabbitMQ queue and state in Redis."""
    queue = new_queue(rabbitmq, queue_type)
    return {
        "source": RabbitMQ(url=rabbitmq.url, queue=queue),
        "state": RedisState(url=redis.url(), key_prefix=queue, timeout_seconds=1),
        "min_free_bytes": MARK,
    }


def embedded(folder: Path, **values: Any) -> Intake:
    """A drain of an embedded queue with state in SQLite."""
    return intake(
        folder, **{"source": EmbeddedQueue(path=folder / "queue"), "min_free_bytes": MARK, **values}
    )


def files(count: int, *, seed: int = 1, prefix: str = "m") -> dict[str, bytes]:
    """Names and contents; sizes up to 3 KB, all contents different."""
    dice = random.Random(seed)
    return {
        f"{prefix}{number:06d}.json": b"%d-%d-" % (seed, number)
        + dice.randbytes(dice.randrange(3000))
        for number in range(count)
    }


def publish(settings: Intake, contents: Mapping[str, bytes]) -> None:
    """Put the files into the queue, in envelopes."""
    publish_bodies(settings, [encode(name, body, "bytes") for name, body in contents.items()])


def publish_bodies(settings: Intake, bodies: list[bytes], **headers: Any) -> None:
    publisher = settings.source.publisher()
    try:
        assert publisher.publish((body, headers) for body in bodies) == len(bodies)
    finally:
        publisher.close()


@contextmanager
def publishing(settings: Intake, *, ahead: int = 500) -> Iterator[dict[str, bytes]]:
    """Files come all the time inside the block, so that a drain is never over before it ends.

    At most `ahead` and a few wait in the queue. The dict is all that was published, once the block
    is left; before that, there may be a few more.
    """
    contents: dict[str, bytes] = {}
    problems: list[BaseException] = []
    over = threading.Event()

    def go_on() -> None:
        publisher = settings.source.publisher()
        try:
            while not over.is_set():
                if publisher.backlog() > ahead:
                    over.wait(0.02)
                    continue
                more = files(100, seed=len(contents), prefix=f"p{len(contents):06d}-")
                publisher.publish((encode(name, body, "bytes"), {}) for name, body in more.items())
                contents.update(more)
        except BaseException as error:
            problems.append(error)
        finally:
            publisher.close()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield contents
    finally:
        over.set()
        thread.join()
    assert problems == []


def backlog(settings: Intake) -> int:
    """Messages that wait and that no consumer holds."""
    publisher = settings.source.publisher()
    try:
        return publisher.backlog()
    finally:
        publisher.close()


def snapshot(settings: Intake) -> Snapshot:
    store = settings.state.store(pipeline=settings.name, node=settings.node)
    try:
        store.open()
        return store.snapshot()
    finally:
        store.close()


@contextmanager
def draining(settings: Intake) -> Iterator[Supervisor]:
    """Workers that drain inside the block, as a sensor's ticks would keep them; then they leave."""
    supervisor = Supervisor(settings)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.5):
            supervisor.renew()

    supervisor.renew()
    ticks = threading.Thread(target=renew)
    ticks.start()
    try:
        yield supervisor
    finally:
        over.set()
        ticks.join()
        supervisor.stop()


def drain_while_workers_are_killed(
    settings: Intake,
    break_server: Callable[[], None] | None,
    settled: Callable[[], bool] = lambda: True,
) -> dict[str, bytes]:
    """Kill `KILLS` workers, one after the other, and break the server each third time; everything
    is stored once, and nothing is left in the queue. Returns what was published.

    `settled`: whether the queue has nothing in anybody's hand.
    """
    chance = random.Random(7)
    contents: dict[str, bytes] = {}
    killed = 0
    with draining(settings):
        for number in range(KILLS):
            workers = settings.process_count
            wait_for(lambda: len(pids(settings) - {killed}) == workers, settings, "workers")  # noqa: B023
            handled = snapshot(settings).stored_messages
            more = files(1_000, seed=number, prefix=f"k{number:04d}-")
            contents |= more
            publish(settings, more)
            some = handled + chance.randrange(500)
            wait_for(lambda: snapshot(settings).stored_messages >= some, settings, "the drain")  # noqa: B023
            killed = chance.choice(sorted(pids(settings)))
            os.kill(killed, signal.SIGKILL)
            if break_server is not None and number % _SERVER_EVERY == _SERVER_EVERY - 1:
                break_server()
        wait_until_stored(settings, contents)
        wait_for(lambda: backlog(settings) == 0, settings, "the rest")
        wait_for(settled, settings, "what is settled last")
    assert_exactly_once(settings, contents)
    print(f"{KILLS} kills, {len(contents)} messages, {snapshot(settings).duplicates} came again")
    return contents


def wait_for(ready: Callable[[], bool], settings: Intake, what: str, seconds: float = 120) -> None:
    """Wait; on failure say what the workers said."""

    def diagnose() -> str:
        return f"{read_statuses(settings.layout)} {len(stored(settings.layout))} messages on disk"

    wait_until(ready, seconds=seconds, what=what, diagnose=diagnose)


def wait_until_stored(settings: Intake, names: Mapping[str, bytes], seconds: float = 120) -> None:
    """Wait until every name is committed somewhere below the pipeline's folder."""
    wait_for(lambda: names.keys() <= stored(settings.layout), settings, "the drain", seconds)


def wait_until_handled(settings: Intake, count: int, seconds: float = 120) -> None:
    """Wait until so many messages were stored, found to be duplicates, or became dead letters."""

    def handled() -> bool:
        now = snapshot(settings)
        return now.stored_messages + now.duplicates + now.dead_letters >= count

    wait_for(handled, settings, "the drain", seconds)


def stored(layout: Layout) -> set[str]:
    """Names of everything committed at the moment, sealed or not."""
    names: set[str] = set()
    for path in layout.root.glob(f"*/slot-*/dir-*/{INDEX_NAME}"):
        with suppress(FileNotFoundError):  # its directory is sealed in this moment
            names |= {entry.name for entry in read_index(path.read_bytes()).entries}
    return names


def seals(layout: Layout) -> list[Seal]:
    """The seals on disk, by slot and number."""
    return [read_seal(directory) for directory in layout.sealed_dirs()]


def sealed_files(layout: Layout) -> dict[str, list[bytes]]:
    """What all sealed slots hold: each name with every content it has in any of them."""
    found: dict[str, list[bytes]] = {}
    for directory in layout.sealed_dirs():
        for name, content in contents_of(directory):
            found.setdefault(name, []).append(content)
    return found


def contents_of(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents in a slot's directory, of either format."""
    segment = directory / "segment.tar"
    if not segment.exists():
        yield from ((path.name, path.read_bytes()) for path in (directory / "files").iterdir())
        return
    with tarfile.open(fileobj=io.BytesIO(segment.read_bytes() + bytes(1024))) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            yield member.name, file.read()


def assert_exactly_once(settings: Intake, contents: Mapping[str, bytes]) -> None:
    """After the workers left: all of it is in sealed slots, once, and nothing is in the queue."""
    seal_on_request(settings)
    assert sealed_files(settings.layout) == {name: [body] for name, body in contents.items()}
    assert backlog(settings) == 0


def pids(settings: Intake) -> set[int]:
    """Processes of the workers that are alive."""
    return {status.pid for status in read_statuses(settings.layout)}


def one_worker(settings: Intake) -> WorkerStatus:
    """The status of the only worker, waiting for it."""
    wait_for(lambda: len(pids(settings)) == 1, settings, "a worker")
    return read_statuses(settings.layout)[0]


def first_worker(supervisor: Supervisor, settings: Intake) -> WorkerStatus:
    """The same of a supervisor without ticks: the start of a worker may outlast one lease."""

    def is_there() -> bool:
        supervisor.renew()
        return len(pids(settings)) == 1

    wait_for(is_there, settings, "a worker")
    return read_statuses(settings.layout)[0]


def hang(_: bytes) -> bytes:
    """A parser that never returns."""
    while True:
        time.sleep(60)


def slowly(body: bytes) -> DecodedFilePayload:
    """A parser that takes its time, four milliseconds of it."""
    time.sleep(0.004)
    return parse_file_message(body)


def main() -> None:
    settings = load_intake(sys.stdin.buffer.readline())
    supervisor = Supervisor(settings)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while not over.is_set():
        supervisor.renew()
        print(json.dumps(supervisor.problems()), flush=True)
        over.wait(0.3)
    supervisor.stop()


if __name__ == "__main__":
    main()
