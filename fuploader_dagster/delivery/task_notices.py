"""What there is to tell of a task: made of what is on the disk, in an order that never changes.

What must always hold: a task's notices are a function of its sealed slot, of the results that are
committed and of the archive's receipt. So the notices of a task that nobody could be told of yet
are made again, with the same ids, by whoever comes next. First is `start`, then each `item` in the
order of the results, at last `end`.

Nothing of it holds a value of the task but the fields that the settings ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fuploader_dagster.contracts.notifier import Event, Notice
from fuploader_dagster.dead_letters.letters import PROCESSING_WRITER, numbered_dead_letters
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.errors import UNREADABLE_JSON
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.formats import contents
from fuploader_dagster.slots.index import INDEX_NAME, read_index
from fuploader_dagster.slots.processed import RESULTS_PREFIX, find_processed
from fuploader_dagster.slots.receipts import Receipt
from fuploader_dagster.slots.sealing import SealedSlot

MOST_FAILURES = 1000
"""Failures that a notice lists; how many there are is in it anyway."""
_LONGEST_VALUE = 1024
_DAY = "[0-9]" * 8


class TaskItem(msgspec.Struct, frozen=True):
    """A result of a task."""

    name: str
    size_bytes: int
    sha256: str


class TaskFailure(msgspec.Struct, frozen=True):
    """What a task has no result of, and why."""

    name: str
    reason: str


class StoredTask(msgspec.Struct, frozen=True, kw_only=True):
    """The archive of a task, as its receipt has it."""

    key: str
    address: str
    size_bytes: int
    sha256: str
    stored_at: str


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task, as far as it is."""

    partition: str
    name: str
    """Of the task's file in the slot."""
    fields: dict[str, Any]
    """By path, of all notifiers."""
    processing: str = ""
    """`Processing.id`; results of another one are other results."""
    items: list[TaskItem] = []
    failed: int = 0
    """Parts of the task, or the whole, that have no result."""
    failures: list[TaskFailure] = []
    archive: StoredTask | None = None
    """None until it is stored, and the task is over."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a task one notifier was told."""

    started: bool = False
    processing: str = ""
    items: int = 0
    ended: bool = False
    attempts: int = 0
    """That were refused, since one succeeded."""
    tried_at: float = 0.0


@dataclass(frozen=True)
class Working:
    """A task that is worked on in this process: its slot, and what is committed of its results."""

    slot: SealedSlot
    processing: str = ""
    results: int = 0


def task_at_work(pipeline: Pipeline, working: Working) -> Task:
    """A task before its end. Raises `DamagedSlot`, or `FileNotFoundError` if it is over by now."""
    seal = working.slot.seal
    items: list[TaskItem] = []
    if working.results:
        directory = pipeline.layout.processed(seal.slot, seal.number)
        entries = read_index(read_own(directory / INDEX_NAME)).entries
        items = _items(entries[: working.results])
    return Task(
        partition=seal.partition,
        name=working.slot.entries()[0].name,
        fields=_fields(pipeline, working.slot),
        processing=working.processing,
        items=items,
    )


def task_at_its_end(pipeline: Pipeline, slot: SealedSlot, receipt: Receipt) -> Task:
    """A task whose archive is stored, before its local data goes. Raises what reading that does."""
    processed = find_processed(slot, pipeline.layout)
    archive = StoredTask(
        key=receipt.key,
        address=receipt.address,
        size_bytes=receipt.size_bytes,
        sha256=receipt.sha256,
        stored_at=receipt.stored_at,
    )
    task = Task(
        partition=receipt.partition,
        name=slot.entries()[0].name,
        fields=_fields(pipeline, slot),
        archive=archive,
    )
    if processed is None:
        return task
    seal = processed.seal
    failures = [TaskFailure(one.name, one.reason) for one in processed.failures()]
    if seal.failed:
        failures += _letters(pipeline.layout, seal.processing.id)
    return msgspec.structs.replace(
        task,
        processing=seal.processing.id,
        items=_items(processed.entries()),
        failed=seal.failed + seal.failures,
        failures=failures[:MOST_FAILURES],
    )


def untold(task: Task, told: Told, pipeline: Pipeline) -> Iterator[tuple[Notice, Told]]:
    """What is still to be told, and how much is told after each notice."""
    if not told.started:
        told = msgspec.structs.replace(told, started=True)
        yield _notice(task, pipeline, "start", {}), told
    if told.processing != task.processing and task.items:
        told = msgspec.structs.replace(told, processing=task.processing, items=0)
    for number, item in enumerate(task.items[told.items :], start=told.items + 1):
        told = msgspec.structs.replace(told, items=number)
        content = {"item": msgspec.to_builtins(item)}
        yield _notice(task, pipeline, "item", content, item.name), told
    if task.archive is not None and not told.ended:
        told = msgspec.structs.replace(told, ended=True)
        content = {
            "results": len(task.items),
            "failed": task.failed,
            "failures": msgspec.to_builtins(task.failures),
            "archive": msgspec.to_builtins(task.archive),
        }
        yield _notice(task, pipeline, "end", content), told


def _notice(
    task: Task, pipeline: Pipeline, event: Event, content: Mapping[str, Any], item: str = ""
) -> Notice:
    notice_id = f"{task.partition}/{event}" + (f"/{item}" if item else "")
    head = {
        "id": notice_id,
        "event": event,
        "pipeline": pipeline.name,
        "node": pipeline.node,
        "partition": task.partition,
        "name": task.name,
        "task": task.fields,
    }
    return Notice(notice_id, event, item, task.fields, {**head, **content})


def _items(entries: Sequence[Any]) -> list[TaskItem]:
    return [
        TaskItem(one.name.removeprefix(RESULTS_PREFIX), one.size_bytes, one.sha256.hex())
        for one in entries
    ]


def _fields(pipeline: Pipeline, slot: SealedSlot) -> dict[str, Any]:
    """The values of the fields that notifiers ask for; those that are missing, or no short values,
    are left out."""
    paths = dict.fromkeys(path for one in pipeline.notify for path in one.fields_used())
    if not paths:
        return {}
    (content,) = contents(slot, slot.entries()[:1])
    try:
        decoded = msgspec.json.decode(content)
    except UNREADABLE_JSON:
        return {}
    found = {path: _at(decoded, path) for path in paths}
    return {path: value for path, value in found.items() if _is_short(value)}


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _is_short(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_VALUE
    return isinstance(value, float) or (isinstance(value, int) and value.bit_length() <= 64)


def _letters(layout: Layout, processing: str) -> list[TaskFailure]:
    """Why items of a processing became dead letters."""
    letters = numbered_dead_letters(layout, f"{_DAY}-{PROCESSING_WRITER}")
    return [
        TaskFailure(letter.item.name, letter.reason)
        for _, letter in letters
        if letter.item is not None
        and letter.item.processing == processing
        and not letter.item.failures  # else its parts are told
    ]
