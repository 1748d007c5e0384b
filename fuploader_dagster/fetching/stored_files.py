"""A task that is processed again: what is in its stored archive is not fetched once more.

What must always hold: a stored file stands for an address only if it was fetched from that address
under that name, which its header says, and if its bytes have the digest that was stored. One that
is damaged is fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from fuploader_dagster.contracts.processor import StoredResult
from fuploader_dagster.errors import DamagedArchive
from fuploader_dagster.fetching.addresses import Address
from fuploader_dagster.fetching.task_folder import TaskFolder, keys_of

ADDRESS_HEADER = "fuploader-address"
"""Kept with each file: a digest of address and name, because an address may hold a secret."""

log = logging.getLogger(__name__)


def take_stored(
    folder: TaskFolder, addresses: Sequence[Address], before: Mapping[str, StoredResult]
) -> None:
    """Put stored files of these addresses into the folder, unless they are there.

    Reads them from the object store, so call this in a thread. Raises what that raises, and
    `DiskFull`.
    """
    stored = {one.headers.get(ADDRESS_HEADER): one for one in before.values()}
    if not folder.is_new:
        folder.take_over()
    for key in keys_of(addresses):
        one = stored.get(key)
        if one is None or key in folder.done:
            continue
        part = folder.part(key)
        try:
            part.begin("", one.size_bytes)
            for piece in one.pieces():
                part.write(piece)
        except DamagedArchive as error:
            log.warning("a stored file cannot be taken over, so it is fetched: %s", error)
            part.discard()
            continue
        if part.digest.digest()[: len(one.digest)] != one.digest:
            log.warning("the stored file %r has another digest, so it is fetched", one.name)
            part.discard()
            continue
        headers = dict(one.headers)
        del headers[ADDRESS_HEADER]
        folder.finish(key, part, one.name, headers.pop("content-type", ""), headers)
