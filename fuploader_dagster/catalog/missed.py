"""Archives that uploads could not add to the catalog because another process held it.

A later upload adds them.

What must always hold: all of this may be lost at any time, as `fuploader catalog rebuild` reads the
store. A late archive is added before any newer one, so it changes nothing that was added since.

Format: `catalog-missed/{32 hex digits}.json`, named by the archive's address: the archive as the
catalog knows it, and its names as `name_lists` packs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec
import zstandard

from fuploader_dagster.catalog.catalog import Catalog, CatalogedArchive
from fuploader_dagster.catalog.name_lists import join_names, pack_names, unpack_names
from fuploader_dagster.disk.durable import make_dirs, write_for_readers
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.temporaries import whole_files
from fuploader_dagster.errors import UNREADABLE_JSON

MOST_KEPT = 1000
"""With more of them, a rebuild is faster."""
ADDED_PER_UPLOAD = 20
"""Each takes some 30 ms for 10,000 names."""


class _Missed(msgspec.Struct, frozen=True, kw_only=True):
    archive: CatalogedArchive
    names: bytes


def remember(layout: Layout, archive: CatalogedArchive, names: Sequence[str]) -> bool:
    """Keep an archive for later; False if there are already too many."""
    folder = layout.catalog_missed
    make_dirs(folder)
    if sum(1 for _ in folder.iterdir()) >= MOST_KEPT:
        return False
    name = hashlib.sha256(archive.address.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    missed = _Missed(archive=archive, names=pack_names(join_names(names)))
    write_for_readers(folder / f"{name}.json", msgspec.json.encode(missed))
    return True


def missed_archives(layout: Layout) -> Iterator[tuple[CatalogedArchive, list[str]]]:
    """What waits to be added, with its names. Changes nothing."""
    for path in whole_files(layout.catalog_missed, "*.json"):
        try:
            missed = msgspec.json.decode(path.read_bytes(), type=_Missed)
            names = unpack_names(missed.names)
        except (FileNotFoundError, *UNREADABLE_JSON, zstandard.ZstdError):
            continue  # an upload has added it, or will remove it
        yield missed.archive, names


def add_missed(layout: Layout, catalog: Catalog, *, most: int | None = None) -> None:
    """Add what was missed. Raises `CatalogUnusable`, and keeps the rest."""
    for path in islice(whole_files(layout.catalog_missed, "*.json"), most):
        try:
            missed = msgspec.json.decode(path.read_bytes(), type=_Missed)
            names = unpack_names(missed.names)
        except FileNotFoundError:  # another upload was quicker
            continue
        except (*UNREADABLE_JSON, zstandard.ZstdError):  # after a power cut: it is not synced
            path.unlink(missing_ok=True)
            continue
        catalog.add(missed.archive, names)
        path.unlink(missing_ok=True)
