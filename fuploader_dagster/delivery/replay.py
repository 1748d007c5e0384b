"""Replay: publishes messages from archives to a queue again.

What must always hold:

- Messages are published in order: archives by the time of their sealing, messages in the order in
  which they arrived.
- A message counts as replayed when the queue confirmed it. After a crash or an error the same
  replay goes on after the last confirmed batch: at most one batch (500 messages) is published
  twice, none is left out.
- Damaged data is never published: the replay stops there and names it. Data that nothing proves
  (archives of FUploader have no checksums) is published, and reported as such.
- A message that the queue refuses (it is too large) is named at the end; the others are sent.
- Results of processing are no messages and are never published. An archive that holds only results
  (`keep: results`) is named, and the others are replayed.

Format of the progress file, one JSON object: the digest of what was asked for, the partition that
was reached, how many of its chosen messages are confirmed, how many in total, and what the queue
refused. It is removed when all are confirmed, so the same command later starts from the beginning.

Where the pipeline reads envelopes, a message becomes an envelope again (content type `json` if the
content is that, else `text`, else `bytes`); elsewhere it is the content. With a parser of your own,
what was archived is what the parser returned: it must be able to read that too. Message headers
that were kept with a file are sent with it, as text.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.catalog.catalog import Catalog
from fuploader_dagster.contracts.refused_messages import publish_accepted
from fuploader_dagster.contracts.source import MessagePublisher, SourceSettings
from fuploader_dagster.delivery.stored_members import has_originals, results_of
from fuploader_dagster.disk.durable import make_dirs, remove_file, write_durably
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import UNREADABLE_JSON, ConfigError
from fuploader_dagster.processing.envelope import message_of
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from fuploader_dagster.slots.receipts import find_receipts, receipts_between

log = logging.getLogger(__name__)

BATCH_MESSAGES = 500
BATCH_BYTES = 16 * 2**20
_Named = tuple[str, tuple[bytes, dict[str, Any]]]
"""A file's name with the body and headers of its message."""
_FIELDS_OF_QUEUES = ("queue", "stream", "topic", "path")


@dataclass(frozen=True)
class Selection:
    """What is to be replayed, and where to."""

    partitions: Sequence[str]
    """In the order in which they are replayed."""
    pattern: str | None
    """Only messages whose file has such a name."""
    target: str
    """The queue in words; to another queue it is another replay."""

    @property
    def digest(self) -> str:
        asked = [list(self.partitions), self.pattern, self.target]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class _Reached(msgspec.Struct, frozen=True):
    """The progress file."""

    selection: str
    partition: str = ""
    confirmed: int = 0
    """Of the partition's chosen messages, including those that the queue refused."""
    total: int = 0
    refused: list[str] = []
    """What the queue will never take, with the reason."""


@dataclass
class ReplayReport:
    """What this attempt at a replay did."""

    published: int = 0
    """Confirmed by the queue."""
    before: int = 0
    """Confirmed in an earlier attempt at the same replay."""
    refused: list[str] = field(default_factory=list)
    """Files that no message can carry, or that the queue will not take, with the reason."""
    unproven: list[str] = field(default_factory=list)
    """Partitions whose archives show no damage, but have nothing that proves their bytes."""
    only_results: list[str] = field(default_factory=list)
    """Partitions whose archives hold no messages, only what was made of them."""


def replay(
    selection: Selection,
    pipeline: Pipeline,
    publisher: MessagePublisher,
    open_archive: Callable[[str], Archive],
    *,
    progress: Callable[[int], None] | None = None,
) -> ReplayReport:
    """Publish what was selected, starting after what an earlier attempt had confirmed.

    `open_archive` opens a partition's archive; `progress` gets the number of confirmed messages.
    Raises `SlotInUse` if the same replay is running, what reading and publishing raise, and
    `DamagedArchive`; after all but the last the replay can go on later.
    """
    path = progress_path(pipeline.layout, selection)
    report = ReplayReport()
    with FileLock(path.with_suffix(".lock")):
        reached = _read(path, selection)
        report.before = reached.total
        reasons = list(reached.refused)
        start = selection.partitions.index(reached.partition) if reached.partition else 0
        receipts = find_receipts(pipeline.layout, selection.partitions)
        for partition in selection.partitions[start:]:
            skip = reached.confirmed if partition == reached.partition else 0
            receipt = receipts.get(partition)
            with open_archive(partition) as archive:
                if not has_originals(archive, receipt):
                    report.only_results.append(partition)
                    continue
                is_result = results_of(archive, receipt, pipeline)
                chosen = _chosen(selection.pattern, is_result)
                messages = _messages(archive, chosen, pipeline, report.refused)
                confirmed = sum(1 for _ in islice(messages, skip))
                while batch := _batch(messages):
                    refused = publish_accepted(publisher.publish, [pair for _, pair in batch])
                    reasons += [f"{batch[at][0]!r}: {error}" for at, error in refused.items()]
                    confirmed += len(batch)
                    report.published += len(batch) - len(refused)
                    total = report.before + report.published
                    _keep(path, _Reached(selection.digest, partition, confirmed, total, reasons))
                    if progress:
                        progress(total)
                if archive.unproven.count:
                    report.unproven.append(f"{partition}: {archive.unproven}")
                    log.warning("replayed %s, but %s", partition, archive.unproven)
        remove_file(path)
        path.with_suffix(".lock").unlink(missing_ok=True)
    report.refused += reasons
    return report


def select(
    pipeline: Intake,
    *,
    partitions: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    pattern: str | None = None,
) -> list[str]:
    """Partitions to replay, in the order of their sealing: those named, or those of a time.

    With a pattern, archives that hold no such file by the catalog are left out; all others are
    read. Raises `ConfigError` if nothing was given, or both partitions and a time.
    """
    if partitions:
        if since is not None or until is not None:
            raise ConfigError(
                "both partitions and a time were given",
                hint="give one of them: a time picks partitions by itself",
            )
        for partition in partitions:
            if PartitionKey.parse(partition) is None:
                raise ConfigError(f"{partition!r} is no partition key")
        return sorted(set(partitions))
    if since is None and until is None and pattern is None:
        raise ConfigError(
            "nothing was said of what to replay", hint="give partitions, a time, or a name pattern"
        )
    found = sorted(receipts_between(pipeline.layout, since, until))
    if pattern is None or not pipeline.layout.catalog.exists():
        return found
    with Catalog.to_read(pipeline.layout.catalog) as catalog:
        known = {archive.partition for archive in catalog.archives().values()}
        holding = {hit.archive.partition for hit in catalog.find(pattern)}
    return [partition for partition in found if partition in holding or partition not in known]


def progress_path(layout: Layout, selection: Selection) -> Path:
    """Where an unfinished replay keeps how far it got."""
    return layout.root / "replays" / f"{selection.digest[:16]}.json"


def another_queue(source: SourceSettings, queue: str) -> SourceSettings:
    """The same broker with another queue. Raises `ConfigError` if the source has no queue name."""
    fields = type(source).model_fields
    usual = next((name for name in _FIELDS_OF_QUEUES if name in fields), None)
    name = source.queue_field or usual
    if name is None:
        raise ConfigError(
            f"{source.describe()} cannot be replayed to another queue: it has no queue name",
            hint="configure a pipeline with the other queue and replay into that",
        )
    given = {each: getattr(source, each) for each in source.model_fields_set}
    return type(source)(**{**given, name: queue})


def _chosen(pattern: str | None, is_result: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: (pattern is None or fnmatchcase(name, pattern)) and not is_result(name)


def _messages(
    archive: Archive, chosen: Callable[[str], bool], pipeline: Intake, refused: list[str]
) -> Iterator[_Named]:
    for file in archive.files(chosen):
        name = file.name
        try:
            headers = from_text(file.headers)
            yield name, message_of(name, file.content, pipeline.message_format, headers)
        except ValueError as error:
            refused.append(f"{name!r}: {error}")


def _batch(messages: Iterator[_Named]) -> list[_Named]:
    """The next batch, full by number or by size; empty at the end."""
    batch: list[_Named] = []
    size_bytes = 0
    while len(batch) < BATCH_MESSAGES and size_bytes < BATCH_BYTES:
        named = next(messages, None)
        if named is None:
            break
        batch.append(named)
        size_bytes += len(named[1][0])
    return batch


def _read(path: Path, selection: Selection) -> _Reached:
    try:
        reached = msgspec.json.decode(path.read_bytes(), type=_Reached)
    except (FileNotFoundError, *UNREADABLE_JSON):
        return _Reached(selection.digest)
    return reached if reached.selection == selection.digest else _Reached(selection.digest)


def _keep(path: Path, reached: _Reached) -> None:
    make_dirs(path.parent)
    write_durably(path, msgspec.json.encode(reached))
