"""Reads and restores members of an archive that is scanned from front to back.

What must always hold: of two members with the same name the last one counts, as when tar unpacks
them; so whether a member counts is only known at the end of the archive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from fnmatch import fnmatchcase

from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.line_frames import ScannedLine
from fuploader_dagster.archives.reports import RestoreReport
from fuploader_dagster.archives.restore_folder import Refused, RestoreFolder
from fuploader_dagster.archives.tar_scan import ScannedMember
from fuploader_dagster.contracts.object_store import Progress
from fuploader_dagster.errors import DamagedArchive, StoreRefused, TooLarge

_HELD_BYTES = 2**26
"""A member up to this size is held in memory until the archive's end; for a longer one the archive
is read again."""

Found = ScannedMember | ScannedLine
Scanned = Iterable[Found | Damage]


def matches(name: str, pattern: str | None) -> bool:
    """Whether a name matches a pattern. Without a pattern all names do."""
    return pattern is None or fnmatchcase(name, pattern)


def stream_last(
    scan: Callable[[], Scanned], name: str, address: str
) -> Generator[memoryview, None, bool]:
    """The member of this name in pieces; returns False if there is none.

    Raises `DamagedArchive` if it is damaged, or may be in a damaged place; `StoreRefused` for a
    link or anything else without content of its own.
    """
    damage: Damage | None = None
    last: Found | None = None
    held: list[bytes] = []
    for item in scan():
        if isinstance(item, Damage):
            damage = item if item.member == name else damage or item
        elif item.name == name:
            last, damage = item, None
            held.clear()
            with suppress(DamagedArchive):  # the scan itself reports it next
                for chunk in item.chunks():
                    if item.size_bytes <= _HELD_BYTES:
                        held.append(bytes(chunk))
    if damage and (damage.member == name or last is None):
        found = "is damaged" if last else "was not found, but the archive is damaged"
        raise DamagedArchive(f"{name!r} {found}: {damage}")
    if last is None:
        return False
    if last.kind != "file":
        raise StoreRefused(f"{name!r} in {address} is {last.kind}, which has no content of its own")
    for piece in held:
        yield memoryview(piece)
    if last.size_bytes > _HELD_BYTES:
        for item in scan():
            if not isinstance(item, Damage) and item.offset == last.offset:
                yield from item.chunks()
    return True


def restore_scanned(
    scanned: Scanned,
    target: RestoreFolder,
    pattern: str | None,
    report: RestoreReport,
    progress: Progress | None,
) -> None:
    """Write the members that match into the folder, and the result into the report."""
    written: set[str] = set()
    refused: dict[str, str] = {}

    def restore(item: Found) -> None:
        if item.kind == "directory":
            target.directory(item.name)
        elif item.kind != "file":
            refused[item.name] = f"{item.name!r} is {item.kind}"
        else:
            again = item.name in written
            report.unchanged += not target.write(item.name, item.chunks(), again=again)
            report.restored += not again
            report.size_bytes += item.size_bytes
            written.add(item.name)
            refused.pop(item.name, None)  # an earlier one, which does not count

    try:
        for item in scanned:
            if isinstance(item, Damage):
                report.damages.append(item)
            elif matches(item.name, pattern):
                try:
                    restore(item)
                except Refused as e:
                    refused[item.name] = str(e)
                except DamagedArchive:
                    pass  # the scan itself reports it next
                if progress:
                    progress(report.size_bytes, 0)
    except TooLarge as e:
        refused[""] = str(e)
    report.refused += refused.values()
