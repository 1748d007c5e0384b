"""The results in a stored archive, for a processor that makes them again.

What must always hold: nothing is read before somebody looks, and whatever is read is verified. An
archive without a manifest, made by a user's packer, has no results to take over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import partial

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.contracts.processor import StoredResult
from fuploader_dagster.delivery.stored_members import OpenArchive
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.slots.processed import RESULTS_PREFIX


class StoredResults(Mapping[str, StoredResult]):
    """By their names. May be used by several threads, until it is closed."""

    def __init__(self, partition: str, open_archive: OpenArchive) -> None:
        self._partition = partition
        self._open_archive = open_archive
        self._lock = threading.Lock()
        self._archive: Archive | None = None
        self._results: dict[str, StoredResult] | None = None

    def __getitem__(self, name: str) -> StoredResult:
        return self._found()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())

    def close(self) -> None:
        with self._lock:
            if self._archive is not None:
                self._archive.close()

    def _found(self) -> dict[str, StoredResult]:
        with self._lock:
            if self._results is None:
                self._archive = self._archive or self._open_archive(self._partition)
                self._results = _results_in(self._archive)
            return self._results


def _results_in(archive: Archive) -> dict[str, StoredResult]:
    if archive.manifest is None or not archive.manifest.results:
        return {}
    found: dict[str, StoredResult] = {}
    for member in archive.members[-archive.manifest.results :]:
        if member.digest is not None:
            found[member.name.removeprefix(RESULTS_PREFIX)] = StoredResult(
                name=member.name.removeprefix(RESULTS_PREFIX),
                size_bytes=member.size_bytes,
                digest=member.digest,
                headers=from_text(member.headers),
                pieces=partial(archive.stream, member.name),
            )
    return found
