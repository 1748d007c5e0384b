"""The members of a stored archive: which of them are results, and how all are fetched back.

What must always hold: every member is verified on the way; where an archive has no digests of them,
the whole of it is, by the digest in its receipt. What is fetched is complete, and in the order of
the archive.

The manifest says how many of the members, the last ones, are results. An archive without one was
made by a user's packer, which got the results in a folder: there the names tell, if its receipt
says that there are results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fuploader_dagster.archives.manifest import RESULTS_KEY, FailedPart
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.delivery.slot_members import append_member
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedArchive
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.index import IndexEntry
from fuploader_dagster.slots.processed import RESULTS_PREFIX
from fuploader_dagster.slots.receipts import Receipt

OpenArchive = Callable[[str], Archive]
"""Opens a partition's stored archive."""


class Fetched(NamedTuple):
    """The members of an archive, in a segment."""

    originals: list[IndexEntry]
    results: list[IndexEntry]
    processed: bool
    """Whether the messages were processed, even if nothing came out of it."""
    failures: Sequence[FailedPart]
    failure_count: int


def fetch(
    before: Receipt,
    open_archive: OpenArchive,
    segment: Path,
    pipeline: Pipeline,
    *,
    results: bool = True,
) -> Fetched:
    """Write the members of the receipt's archive into a segment like the one they came from.

    Without `results`, only the originals. Raises `DamagedArchive`, or `ForeignArchive` for what
    only a user's packer could read.
    """
    with open_archive(before.partition) as stored, naming_disk_trouble(segment):
        is_result = results_of(stored, before, pipeline)
        noted = stored.manifest is not None and RESULTS_KEY in stored.manifest.metadata
        fetched = Fetched(
            originals=[],
            results=[],
            processed=noted or bool(before.results),
            failures=stored.manifest.failures if stored.manifest is not None else (),
            failure_count=stored.manifest.failure_count if stored.manifest is not None else 0,
        )
        with segment.open("wb") as file:
            for member in stored.open_files(lambda name: results or not is_result(name)):
                name, size_bytes, headers, pieces = member
                entry = append_member(file, name, size_bytes, pieces, headers)
                (fetched.results if is_result(name) else fetched.originals).append(entry)
        if stored.unproven.count:  # or the new archive would vouch for whatever came
            stored.verify_whole(before.sha256)
    wanted = (before.messages * before.originals, before.results * results)
    if (len(fetched.originals), len(fetched.results)) != wanted:
        raise DamagedArchive(
            f"{before.address} has {len(fetched.originals)} originals and {len(fetched.results)} "
            f"results, its receipt says {wanted[0]} and {wanted[1]}"
        )
    return fetched


def results_of(
    stored: Archive, receipt: Receipt | None, pipeline: Pipeline
) -> Callable[[str], bool]:
    """Tells by its name whether a member of this archive is a result."""
    named = stored.results()
    if stored.manifest is not None:
        return named.__contains__
    if pipeline.process is not None if receipt is None else receipt.results:
        return lambda name: name.startswith(RESULTS_PREFIX)
    return lambda _: False


def has_originals(stored: Archive, receipt: Receipt | None) -> bool:
    """Whether the archive holds the messages themselves; no slot is without any."""
    if receipt is not None and not receipt.originals:
        return False
    manifest = stored.manifest
    if manifest is None or RESULTS_KEY not in manifest.metadata:
        return True
    return manifest.results < manifest.member_count
