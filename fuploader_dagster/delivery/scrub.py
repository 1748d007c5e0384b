"""The scrub: compares a stored archive with its receipt, and reads some of its members.

What must always hold: nothing is changed. Whatever contradicts a receipt or a manifest is a problem
that names the archive. A store that does not answer is no finding; it raises. An archive in a
storage class that cannot be read at once (GLACIER and the like) is a note, and holds up no other.

Two small requests give size and digest as the store states them, and the number of members as the
manifest states it. The members that are read besides are picked at random. The pages that lead to
them and the frames that hold them are read too, each by its own range, and compared with their
digests.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fuploader_dagster.archives.foreign import ForeignArchive, refuse_foreign
from fuploader_dagster.archives.parquet_end import ContentNotKept
from fuploader_dagster.archives.ranges import CountedReads, RangeSource
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.errors import ColdObject, DamagedArchive, PermanentError
from fuploader_dagster.slots.receipts import Receipt

_NOT_READ = (
    "{why}: only the size and the digest that the store states were compared, which does not prove "
    "its bytes; `fuploader verify` with the partition reads them"
)


@dataclass(frozen=True)
class Finding:
    """What was found about one partition's archive."""

    partition: str
    address: str
    problems: Sequence[str] = ()
    members_read: int = 0
    requests: int = 0
    bytes_read: int = 0
    note: str = ""


def scrub(receipt: Receipt, source: RangeSource, rng: random.Random, *, members: int) -> Finding:
    """Compare what store and manifest state with the receipt, and read `members` of its members.

    Raises `StoreUnavailable`, or `StoreRefused` if the store refuses access.
    """
    problems = list(_contradictions(receipt, source))
    counted = CountedReads(source)
    read = 0
    note = ""
    try:
        with Archive.open(counted) as archive:
            if archive.closing_damage is not None:
                problems.append(str(archive.closing_damage))
            elif archive.manifest is None:
                refuse_foreign(counted)
                note = _NOT_READ.format(why="it has no manifest")
            else:
                there = archive.manifest.member_count
                if there != receipt.members:
                    problems.append(f"it has {there} members, {receipt.members} were packed")
                names = sorted(archive.names()) if members else []
                for name in rng.sample(names, min(members, len(names))):
                    for _ in archive.stream(name):
                        pass
                    read += 1
    except ContentNotKept:
        note = "it has only columns (parquet_content: false): its members cannot be read back"
    except ForeignArchive:
        note = _NOT_READ.format(why="a packer of your own made it")
    except ColdObject:
        note = (
            "it is in a cold storage class and cannot be read: only the size and the digest that "
            "the store states were compared; restore it from that class to have it read"
        )
    except DamagedArchive as error:
        problems.append(error.message)
    return Finding(
        receipt.partition, receipt.address, problems, read, counted.reads, counted.bytes_read, note
    )


def examine(
    receipt: Receipt,
    find: Callable[[Receipt], RangeSource],
    rng: random.Random | None = None,
    *,
    members: int = 0,
) -> Finding:
    """Find an archive by its receipt and scrub it. One that the store refuses is a finding.

    Raises `StoreUnavailable`.
    """
    try:
        source = find(receipt)
        return scrub(receipt, source, rng or random.Random(0), members=members)  # noqa: S311
    except PermanentError as error:
        return Finding(receipt.partition, receipt.address, [str(error)])


def _contradictions(receipt: Receipt, source: RangeSource) -> Sequence[str]:
    stated = getattr(source, "sha256", None)
    found = []
    if source.size_bytes != receipt.size_bytes:
        found.append(
            f"the store has {source.size_bytes} bytes, {receipt.size_bytes} were confirmed"
        )
    if stated is not None and stated != receipt.sha256:
        found.append(f"the store has SHA-256 {stated}, {receipt.sha256} was confirmed")
    return found
