"""Fills the catalog: with each archive as it is uploaded, or with all of them, from the store.

What must always hold: a catalog that is missing, broken, forbidden or locked fails no upload, and
delays none for long. It only lacks archives, which is logged: those that another process's lock
kept out are added by a later upload (`missed`), and all others by a rebuild.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from fuploader_dagster.archives.foreign import ForeignArchive
from fuploader_dagster.archives.ranges import StoredArchive
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.catalog.catalog import (
    WAIT_SECONDS,
    Catalog,
    CatalogedArchive,
    CatalogUnusable,
)
from fuploader_dagster.catalog.missed import ADDED_PER_UPLOAD, add_missed, remember
from fuploader_dagster.contracts.object_store import ObjectInfo, ObjectStore, Progress
from fuploader_dagster.disk.layout import REDO_MARK, Layout, PartitionKey
from fuploader_dagster.disk.sqlite_files import TROUBLE, remove_database
from fuploader_dagster.errors import DamagedArchive, FuploaderError
from fuploader_dagster.settings.archive_formats import ALL_SUFFIXES, without_suffix
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import key_prefix
from fuploader_dagster.slots.receipts import Receipt, receipts_between

log = logging.getLogger(__name__)

_PROBE = "x"
_UPLOAD_WAITS_SECONDS = 3.0


def note_in_catalog(
    receipt: Receipt, names_of: Callable[[], Sequence[str]], pipeline: Pipeline
) -> None:
    """Add an archive that was just stored; `names_of` reads its names. Never raises."""
    if not pipeline.catalog:
        return
    try:
        names = names_of()
        archive = _cataloged(receipt, receipt.address, receipt.partition, len(names))
        _add(archive, names, pipeline.layout)
    except (FuploaderError, OSError) as error:
        log.warning(
            "%s is stored, but not in the catalog (fuploader catalog rebuild adds it): %s",
            receipt.partition,
            error,
        )


def _add(archive: CatalogedArchive, names: Sequence[str], layout: Layout) -> None:
    try:
        with Catalog(layout.catalog, wait_seconds=_UPLOAD_WAITS_SECONDS) as catalog:
            add_missed(layout, catalog, most=ADDED_PER_UPLOAD)
            catalog.add(archive, names)
    except CatalogUnusable as error:
        if not error.busy or not remember(layout, archive, names):
            raise
        log.warning(
            "%s is stored; a later upload will add it to the catalog: %s",
            archive.partition,
            error.message,
        )


@dataclass
class RebuildReport:
    """What a rebuild did."""

    archives: int = 0
    """In the store."""
    added: int = 0
    gone: int = 0
    """Were in the catalog, but are no longer in the store."""
    unreadable: list[str] = field(default_factory=list)
    """Archives whose members cannot be listed, each with the reason."""
    damaged: bool = False
    """Whether one of the reasons is damage."""


def rebuild(
    pipeline: Pipeline, store: ObjectStore, *, threads: int = 8, progress: Progress | None = None
) -> RebuildReport:
    """Make the catalog match the store, by reading the manifests of archives that it lacks.

    Takes two or three small reads for each of these, and one request for each archive that is known
    but was not listed: it has a key of an earlier template, or is gone. `progress` counts archives.
    """
    report = RebuildReport()
    endings = (pipeline.archive_suffix, *ALL_SUFFIXES)
    prefix = key_prefix(pipeline.key, pipeline=pipeline.name)
    there = {
        store.address(info.key): info for info in store.list(prefix) if info.key.endswith(endings)
    }
    with Catalog(pipeline.layout.catalog) as catalog:
        add_missed(pipeline.layout, catalog)
        known = catalog.archives()
        unlisted = _unlisted(pipeline, store, there, known)
        for address, key in unlisted.items():
            if info := store.head(key):
                there[address] = info
            elif address in known:
                catalog.forget(address)
                report.gone += 1
        report.archives = len(there)
        lacking = [
            info
            for address, info in there.items()
            if address not in known or known[address].size_bytes != info.size_bytes
        ]
        for number, (info, found) in enumerate(_read_all(store, lacking, threads), start=1):
            if isinstance(found, FuploaderError):
                report.unreadable.append(str(found))
                report.damaged |= isinstance(found, DamagedArchive)
            else:
                stem = without_suffix(PurePosixPath(info.key).name, pipeline.archive_suffix)
                partition = stem.partition(REDO_MARK)[0]
                address = store.address(info.key)
                catalog.add(_cataloged(info, address, partition, len(found)), found)
                report.added += 1
            if progress:
                progress(number, len(lacking))
    return report


def _unlisted(
    pipeline: Pipeline, store: ObjectStore, there: Iterable[str], known: Iterable[str]
) -> dict[str, str]:
    """Address and key of archives that catalog or receipts say are in this store, but no listing.

    Archives in another store stay in the catalog: nobody looks there.
    """
    base = store.address(_PROBE).removesuffix(_PROBE)
    keys = {address: address.removeprefix(base) for address in known}
    keys |= {one.address: one.key for one in receipts_between(pipeline.layout).values()}
    listed = set(there)
    return {
        address: key
        for address, key in keys.items()
        if address not in listed and key and store.address(key) == address
    }


def remove_catalog(layout: Layout) -> None:
    """Remove the catalog, whatever state it is in. Raises `CatalogUnusable`."""
    try:
        remove_database(layout.catalog, wait_seconds=WAIT_SECONDS)
    except TROUBLE as error:
        raise CatalogUnusable(
            f"the catalog {layout.catalog} cannot be removed: {error}",
            hint="run it as the user who owns the file and its folder",
        ) from error


def _read_all(
    store: ObjectStore, infos: Sequence[ObjectInfo], threads: int
) -> Iterator[tuple[ObjectInfo, Sequence[str] | FuploaderError]]:
    def read(info: ObjectInfo) -> Sequence[str] | FuploaderError:
        try:
            with Archive.open(StoredArchive(store, info.key, info)) as archive:
                return archive.names()
        except (DamagedArchive, ForeignArchive) as error:
            return error

    with ThreadPoolExecutor(threads, "catalog") as pool:
        for first in range(0, len(infos), 2 * threads):  # keeps few names in memory at once
            some = infos[first : first + 2 * threads]
            yield from zip(some, pool.map(read, some), strict=True)


def _cataloged(
    stored: Receipt | ObjectInfo, address: str, partition: str, members: int
) -> CatalogedArchive:
    """The entry of an archive. `partition` counts only if it is a partition key."""
    key = PartitionKey.parse(partition)
    return CatalogedArchive(
        address=address,
        key=stored.key,
        partition=partition if key else "",
        sealed_at=key.sealed_at.isoformat(timespec="milliseconds") if key else "",
        members=members,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
    )
