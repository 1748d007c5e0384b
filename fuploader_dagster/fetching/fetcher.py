"""Many addresses at once: the files of a task.

What must always hold:

- Each address of a task ends as a file or as a failure with its reason, exactly one of the two.
- `concurrency`, `per_host` and the pauses hold over all tasks of a fetcher together.
- A failure of the disk is no failure of an address: it ends the task, and what is there is taken up
  by the next attempt.
- A task's memory does not depend on the size of its files, and hardly on their number.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yarl import URL

from fuploader_dagster.fetching import answers
from fuploader_dagster.fetching.addresses import Address
from fuploader_dagster.fetching.connections import Connections
from fuploader_dagster.fetching.download import Answer, Download, wait_seconds
from fuploader_dagster.fetching.failures import NotFetched, Passing, Refused
from fuploader_dagster.fetching.lanes import Lanes
from fuploader_dagster.fetching.names import check_given_name, name_of
from fuploader_dagster.fetching.part_file import PartFile
from fuploader_dagster.fetching.places import shown
from fuploader_dagster.fetching.task_folder import DoneFile, TaskFolder, keys_of

if TYPE_CHECKING:
    from fuploader_dagster.fetching.settings import Fetch

_IN_WORK = 1000
"""Addresses that have a coroutine, over all tasks; those in work and those that wait to retry."""
_PROGRESS_BYTES = 1 << 20
"""An attempt that brought that much does not count against `max_retries`."""


_Wanted = tuple[int, Address, str]
"""Position, address and key of one that is to be fetched. Thousands of them may wait, so the parsed
address is not among them."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An address whose file is here."""

    position: int
    """Of the address in the task, from 0."""
    file: DoneFile
    before: bool = False
    """It was here before anybody was asked."""


@dataclass(frozen=True, slots=True)
class Missed:
    """An address whose file is not here."""

    position: int
    address: str
    """Without login and query."""
    name: str
    """What the task calls it; may be empty."""
    reason: str
    status: int | None
    """What the server answered last, if it did."""
    passing: bool
    """Another attempt may succeed."""
    unreachable: bool
    """Nobody answered."""


@dataclass
class Counts:
    """How far a task is; for displays."""

    done: int = 0
    failed: int = 0
    before: int = 0
    """Of `done`, how many were there already."""
    size_bytes: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task, in the order of its addresses."""

    fetched: list[Fetched] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        """Whether any server did, with a file or a final no."""
        final = (one.status is not None and not one.passing for one in self.missed)
        return self.something_came or any(final)

    @property
    def something_came(self) -> bool:
        """Whether a file was fetched, and not only found here."""
        return not all(one.before for one in self.fetched)


class Fetcher:
    """Belongs to one event loop; `fetch` may be called many times at once."""

    def __init__(self, settings: Fetch, connections: Connections) -> None:
        self._settings = settings
        self._connections = connections
        self._lanes = Lanes(
            settings.concurrency, settings.per_host, settings.per_host_pause_seconds
        )
        self._window = asyncio.Semaphore(max(_IN_WORK, 2 * settings.concurrency))

    async def fetch(
        self,
        addresses: Sequence[Address],
        folder: TaskFolder,
        counts: Counts | None = None,
        *,
        durably: bool = True,
    ) -> Outcome:
        """Fetch what is not there yet. Raises `DiskFull` and `DiskFailed`.

        `durably`: sync the files at the end.
        """
        if not folder.is_new:
            await asyncio.to_thread(folder.take_over)
        task = _Task(folder, counts or Counts(), self._settings.max_task_bytes)
        hosts: dict[str, deque[_Wanted]] = {}
        for position, (address, key) in enumerate(zip(addresses, keys_of(addresses), strict=True)):
            if key in folder.done:
                task.take(position, folder.done[key], before=True)
                continue
            try:
                check_given_name(address.name)
                host = self._connections.places.checked(address.url).raw_host or ""
                hosts.setdefault(host, deque()).append((position, address, key))
            except Refused as error:
                task.miss(position, address, error)
        await self._all(task, hosts)
        if durably:
            await asyncio.to_thread(folder.sync)
        return task.outcome()

    async def _all(self, task: _Task, hosts: dict[str, deque[_Wanted]]) -> None:
        running: set[asyncio.Task[None]] = set()
        failed = asyncio.Event()

        def ended(one: asyncio.Task[None]) -> None:
            self._window.release()
            running.discard(one)
            if not one.cancelled() and one.exception() is not None:
                task.error = task.error or one.exception()
                failed.set()

        try:
            for one in _by_turns(hosts):
                await self._window.acquire()
                if failed.is_set():
                    self._window.release()
                    break
                running.add(started := asyncio.create_task(self._one(task, *one)))
                started.add_done_callback(ended)
            while running and not failed.is_set():
                await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
                await asyncio.sleep(0)  # so that `ended` is called
        finally:
            left = list(running)
            for each in left:
                each.cancel()
            if left:
                await asyncio.wait(left)
        if task.error is not None:
            raise task.error

    async def _one(self, task: _Task, position: int, address: Address, key: str) -> None:
        url = self._connections.places.checked(address.url)
        part = task.folder.part(key)
        try:
            answer = await self._attempts(task, url, key, part)
        except NotFetched as error:
            task.miss(position, address, error)
            task.count(-part.size_bytes)
            if isinstance(error, Refused):
                part.discard()
            return
        finally:
            part.close()
        name = name_of(address.name, answer.url, answer.headers)
        headers = answers.kept_headers(answer.headers)
        if self._settings.decode:
            headers.pop("content-encoding", None)
        content_type = answers.type_of(answer.headers)
        task.take(position, task.folder.finish(key, part, name, content_type, headers))

    async def _attempts(self, task: _Task, url: URL, key: str, part: PartFile) -> Answer:
        settings = self._settings
        if task.folder.may_have(key):
            await asyncio.to_thread(part.take_up)
            task.count(part.size_bytes)
        download = Download(
            url,
            part,
            settings=settings,
            connections=self._connections,
            lanes=self._lanes,
            count=task.count,
        )
        failures = 0
        while True:
            before = part.size_bytes
            try:
                return await download.attempt()
            except Passing as error:
                failures = 0 if part.size_bytes - before >= _PROGRESS_BYTES else failures + 1
                if failures > settings.max_retries:
                    raise
                pause = wait_seconds(error, max(failures, 1), settings.retry_delay_seconds)
                if asyncio.get_running_loop().time() + pause >= download.deadline:
                    error.reason += "; timeout_seconds leaves no time for another attempt"
                    raise
                await asyncio.sleep(pause)


class _Task:
    def __init__(self, folder: TaskFolder, counts: Counts, most_bytes: int | None) -> None:
        self.folder = folder
        self.counts = counts
        self.error: BaseException | None = None
        self._most_bytes = most_bytes
        self._size_bytes = 0
        self._fetched: list[Fetched] = []
        self._missed: list[Missed] = []

    def count(self, size_bytes: int) -> None:
        most = self._most_bytes
        if most is not None and size_bytes > 0 and self._size_bytes + size_bytes > most:
            raise Refused(f"the task's files have more than max_task_bytes, {most:,} bytes")
        self._size_bytes += size_bytes
        self.counts.size_bytes += size_bytes

    def take(self, position: int, done: DoneFile, *, before: bool = False) -> None:
        self._fetched.append(Fetched(position, done, before))
        self.counts.done += 1
        if before:
            self.counts.before += 1
            self._size_bytes += done.size_bytes
            self.counts.size_bytes += done.size_bytes

    def miss(self, position: int, address: Address, error: NotFetched) -> None:
        passing = isinstance(error, Passing)
        unreachable = isinstance(error, Passing) and error.unreachable
        self._missed.append(
            Missed(
                position,
                shown(address.url),
                address.name,
                error.reason,
                error.status,
                passing,
                unreachable,
            )
        )
        self.counts.failed += 1

    def outcome(self) -> Outcome:
        return Outcome(
            sorted(self._fetched, key=lambda one: one.position),
            sorted(self._missed, key=lambda one: one.position),
        )


def _by_turns(hosts: dict[str, deque[_Wanted]]) -> Iterator[_Wanted]:
    """Hosts by turns, so that one with many addresses does not fill the window alone."""
    turns = deque(hosts.values())
    while turns:
        host = turns.popleft()
        yield host.popleft()
        if host:
            turns.append(host)
