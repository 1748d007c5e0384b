"""The doctor: checks everything that a pipeline depends on, and says what to do about it.

What must always hold: it can run beside a working pipeline. It takes no message, claims no slot and
declares no queue, and it removes what it writes: a probe on the disk, a small object under a name
of its own, a probe in the state store that nobody else sees. A check that finds trouble does not
stop the others, and nothing is retried: it reports how things are now.

Queue, state store, sinks and notifiers check themselves (`examine` of their settings). The object
store is tried through its contract, the machine through `machine`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis, trouble
from fuploader_dagster.contracts.functions import name_of, reference_to
from fuploader_dagster.contracts.object_store import ArchiveFile, ObjectStore, OpensObjectStore
from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.control.wishes import PARTS, current
from fuploader_dagster.disk.header_text import folded
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.health import judging, machine
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from fuploader_dagster.settings.secret import unset_variables
from fuploader_dagster.settings.user_functions import key_prefix

PROBE_PREFIX = "fuploader-doctor-"
CLOCK_WARNING_SECONDS = 60.0
CLOCK_WRONG_SECONDS = 600.0
"""S3, COS and OSS refuse requests whose signature is 15 minutes off."""
STRATEGIES = ("parser", "file_name", "key", "packer")


def examine(pipeline: Pipeline) -> Iterator[Diagnosis]:
    """Check one pipeline, in the order in which a message passes its parts."""
    if unset := sorted(set(unset_variables(pipeline))):
        for variable in unset:
            said = f"environment variable {variable} is not set"
            hint = "the configuration takes a secret from it; nothing else was checked"
            yield Diagnosis("secrets", "wrong", said, hint)
        return
    yield from _reported("queue", pipeline.source.examine())
    yield from headers_of_the_queue(pipeline)
    yield prefetch_against_batch(pipeline)
    yield from strategies(pipeline)
    yield from disk(pipeline)
    yield machine.judge_open_files(machine.open_files_limit(), pipeline)
    state = pipeline.state.examine_for(pipeline=pipeline.name, node=pipeline.node)
    yield from _reported("state", state)
    yield pauses(pipeline)
    if pipeline.process is not None:
        yield from _reported("processor", pipeline.process.examine())
        yield from _headers(pipeline, pipeline.process)
    for name, sink in pipeline.sinks.items():
        yield from _importable(f"sink {name}", sink.rows)
        for found in _reported("sink", sink.examine()):
            what = "" if found.check == "sink" else f": {found.check}"
            yield replace(found, check=f"sink {name}{what}")
    for notifier in pipeline.notify:
        yield from _reported("notifier", notifier.examine())
    yield from object_store(pipeline)
    for former in pipeline.former_stores:
        yield from _reported("former store", _former_store(former))
    yield from _reported("judgements", judgements(pipeline))


def judgements(pipeline: Pipeline) -> Iterator[Diagnosis]:
    """What the asset checks say of the pipeline at this moment, in their words.

    Without those of disk and object store, which are tried here, and without any before the first
    start. What has to be drained or uploaded is a warning: a doctor is also asked when everything
    is stopped.
    """
    if not pipeline.layout.root.is_dir():
        return
    try:
        seen = judging.look(pipeline)
    except OSError as error:
        found = f"cannot read what is in {pipeline.layout.root}: {error}"
        yield Diagnosis("judgements", "wrong", found, "make it readable for this user")
        return
    for one in judging.judge(pipeline, seen):
        if one.check == "being_drained" and seen.figures.queue.depth is None:
            continue  # the queue's own check says it
        if one.check in ("being_drained", "keeping_up"):
            yield replace(one, serious=False).diagnosis()
        elif one.check in ("nothing_lost", "dead_letters_below_limit"):
            yield one.diagnosis()


def pauses(pipeline: Intake) -> Diagnosis:
    """Whether somebody has paused the pipeline."""
    wishes = current(pipeline, changing=False)
    if not str(wishes):
        return Diagnosis("pause", "good", "nothing is paused")
    hint = f"`fuploader resume {pipeline.name}` ends the pause"
    unreadable = not all(wishes.of(part).at for part in PARTS if wishes.of(part).paused)
    return Diagnosis("pause", "wrong" if unreadable else "warning", str(wishes), hint)


def prefetch_against_batch(pipeline: Intake) -> Diagnosis:
    """Whether the next batch is here already while a worker makes one durable."""
    prefetch, batch = pipeline.prefetch_count, pipeline.commit_messages
    found = f"prefetch_count is {prefetch:,}, commit_messages {batch:,}"
    if prefetch < 2 * batch:
        hint = f"set prefetch_count to at least {2 * batch:,}"
        found += ": workers wait for messages after each commit"
        return Diagnosis("prefetch", "warning", found, hint)
    return Diagnosis("prefetch", "good", found)


def headers_of_the_queue(pipeline: Intake) -> Iterator[Diagnosis]:
    """Whether there is any place for headers in the queue from which they are to be kept."""
    with closing(pipeline.source.publisher()) as publisher:
        if pipeline.headers and not publisher.keeps_headers:
            yield Diagnosis(
                "headers",
                "warning",
                f"{pipeline.source.describe()} has no place for the headers of a message: none of "
                f"{', '.join(pipeline.headers)} is kept with any file",
                "remove `headers`, or use a queue with headers, such as kind: redis_stream",
            )


def _headers(pipeline: Pipeline, process: ProcessorSettings) -> Iterator[Diagnosis]:
    """Whether the headers that the processor looks at are kept with the files."""
    kept = {folded(name) for name in pipeline.headers}
    if lacking := [name for name in process.headers_used() if folded(name) not in kept]:
        yield Diagnosis(
            "headers",
            "warning",
            f"the processor looks at the header {', '.join(lacking)}, which the pipeline does not "
            f"keep: to it, no item has any",
            f"add {', '.join(lacking)} to `headers`",
        )


def strategies(pipeline: Pipeline) -> Iterator[Diagnosis]:
    """Whether each of the user's functions can be imported by its name, as a worker does."""
    for name in STRATEGIES:
        yield from _importable(name, getattr(pipeline, name))


def _importable(check: str, function: Any) -> Iterator[Diagnosis]:
    if not callable(function):
        return
    try:
        yield Diagnosis(check, "good", f"{reference_to(function)} can be imported")
    except ValueError as error:
        hint = "other processes import it by name: put it into a module that they can import"
        yield Diagnosis(check, "wrong", f"{name_of(function)}: {error}", hint)


def disk(pipeline: Pipeline) -> Iterator[Diagnosis]:
    """The disk that holds `storage_root`, tested by real writes."""
    try:
        found = machine.read_disk(pipeline.layout.root.parent)
    except FuploaderError as error:
        yield trouble("disk", error)
    except OSError as error:
        yield Diagnosis(
            "disk",
            "wrong",
            f"cannot write below {pipeline.storage_root}: {error.strerror}",
            "create the folder and make the user that runs the workers its owner",
        )
    else:
        yield from machine.judge_disk(found, pipeline)


def object_store(pipeline: Pipeline) -> Iterator[Diagnosis]:
    """The bucket and our rights in it, tested by a part and an object; then its clock."""
    try:
        store = _opened(pipeline.store)
        store.check()
    except FuploaderError as error:
        yield trouble("object store", error)
        return
    yield from getattr(pipeline.store, "examine", tuple)()  # a user's own store may have none
    yield from _round_trip(store, key_prefix(pipeline.key, pipeline=pipeline.name))
    yield _listing(store)
    yield from _reported("clock", _clock(store))


def judge_clock(difference_seconds: float) -> Diagnosis:
    """What it means that our clock is this far ahead of the store's (negative: behind)."""
    size = abs(difference_seconds)
    direction = "ahead of" if difference_seconds > 0 else "behind"
    found = f"this machine's clock is {size:,.0f} s {direction} the object store's"
    if size >= CLOCK_WRONG_SECONDS:
        hint = "object stores refuse requests that are 15 minutes off: start chrony or ntpd"
        return Diagnosis("clock", "wrong", found, hint)
    if size >= CLOCK_WARNING_SECONDS:
        hint = "partition keys and dated object keys are off by as much: start chrony or ntpd"
        return Diagnosis("clock", "warning", found, hint)
    return Diagnosis("clock", "good", found)


def _reported(check: str, looks: Iterator[Diagnosis]) -> Iterator[Diagnosis]:
    """What they find; an error that ends them is a finding too."""
    try:
        yield from looks
    except FuploaderError as error:
        yield trouble(check, error)


def _opened(settings: OpensObjectStore) -> ObjectStore:
    """The store, opened without retries: a person is waiting."""
    if "retry_budget_seconds" in getattr(type(settings), "model_fields", {}):
        once = {"retry_budget_seconds": 0}
        settings = settings.model_copy(update=once)  # type: ignore[attr-defined]
    return settings.open()


def _round_trip(store: ObjectStore, prefix: str) -> Iterator[Diagnosis]:
    """Store, read and remove a small object under the prefix of the pipeline's keys."""
    folder = prefix.rpartition("/")[0]
    key = f"{folder}/" * bool(folder) + PROBE_PREFIX + secrets.token_hex(8)
    content = os.urandom(1024)
    verdict, doing = partial(Diagnosis, "object store"), "store"
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / "probe"
        file.write_bytes(content)
        probe = ArchiveFile(file, len(content), hashlib.sha256(content).hexdigest())
        try:
            started = time.monotonic()
            receipt = store.put(key, probe)
            seconds = time.monotonic() - started
            doing = "read"
            if store.head(key) is None or store.get_range(key, 0, 2048) != content:
                yield verdict(
                    "wrong",
                    f"{receipt.address} was stored, but reads back as something else",
                    "look for a cache or a proxy between this machine and the store",
                )
            else:
                yield verdict(
                    "good",
                    f"{receipt.address} was stored, verified and read back in {seconds:.2f} s",
                )
        except FuploaderError as error:
            found = trouble("object store", error)
            yield replace(found, found=f"cannot {doing} objects: {found.found}")
            if doing == "store":
                return
    yield _removal(store, key)


def _removal(store: ObjectStore, key: str) -> Diagnosis:
    try:
        store.erase(key)
        if store.head(key) is None:
            return Diagnosis("removal", "good", "the doctor's object was removed again")
        problem = f"{store.address(key)} was removed, but still exists"
    except FuploaderError as error:
        problem = f"{store.address(key)} could not be removed: {error.message}"
    hint = "pipelines never remove objects, so this may be intended; remove this one by hand"
    return Diagnosis("removal", "warning", problem, hint)


def _listing(store: ObjectStore) -> Diagnosis:
    """Recovery needs to list unfinished uploads, `fuploader catalog rebuild` to list objects."""
    try:
        next(iter(store.list(PROBE_PREFIX)), None)
        unfinished = store.unfinished(PROBE_PREFIX)
    except FuploaderError as error:
        hint = "allow listing of objects and of unfinished uploads: without it, unfinished uploads "
        hint += "stay and cost money, and the catalog cannot be rebuilt"
        return Diagnosis("listing", "warning", f"cannot list: {error.message}", hint)
    left = counted(
        len(unfinished),
        "unfinished upload of the doctor's is",
        "unfinished uploads of the doctor's are",
    )
    found = f"works; {left} left"
    return Diagnosis("listing", "good", found)


def _clock(store: ObjectStore) -> Iterator[Diagnosis]:
    before = datetime.now(timezone.utc)
    theirs = store.clock()
    if theirs is not None:  # else the store has no clock but ours
        ours = before + (datetime.now(timezone.utc) - before) / 2
        yield judge_clock((ours - theirs).total_seconds())


def _former_store(settings: OpensObjectStore) -> Iterator[Diagnosis]:
    _opened(settings).head(f"{PROBE_PREFIX}former")
    yield Diagnosis("former store", "good", f"{settings.describe()} can be read")
