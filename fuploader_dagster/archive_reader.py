"""Reading an archive back: list, read one member, verify, restore; from a disk or from a store.

What must always hold:

- Bytes that contradict the manifest are never given out as a whole member.
- Whatever is wrong with an archive is said with the member's name or the offset. An error of this
  package is all that a damaged archive can cause.
- Restoring never writes outside its folder (`restoring`), and gets out all that is intact.

An archive with a manifest is read from its end: tail, manifest, and then only the frames that are
asked for. Any other `.tar.zst`, and one of ours whose end is damaged, is read from front to back
(`tar_scan`): everything works, but slowly, and without digests of the members. What is no
`.tar.zst` at all raises `ForeignArchive` (`foreign`).

    with Archive.open(Path("a.tar.zst")) as archive:
        for member in archive.members: print(member.name, member.size_bytes)
        payload = archive.read("1.json")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from fuploader_dagster.archive_closing import (
    closing_damages,
    find_manifest,
    read_names,
    read_page,
    read_pages,
)
from fuploader_dagster.archive_reports import Listing, RestoreReport, VerifyReport, WholeMembers
from fuploader_dagster.errors import DamagedArchive, StoreRefused
from fuploader_dagster.foreign import refuse_foreign
from fuploader_dagster.frame_reader import FrameReader, Stretch, stretches
from fuploader_dagster.frame_walk import Damage
from fuploader_dagster.manifest import FrameEntry, Manifest, MemberEntry
from fuploader_dagster.range_source import LocalFile, RangeSource, WithTail
from fuploader_dagster.restoring import Refused, RestoreFolder
from fuploader_dagster.storage import Progress
from fuploader_dagster.tar_scan import ScannedMember, scan

_TAIL_BYTES = 2**16
"""Read first: the seek table of an archive of 8 GiB, and often the whole manifest."""
_RESTORE_HINT = "fuploader restore gets out what is intact"


class Archive:
    """An open archive. Safe to use from several threads; a context manager."""

    def __init__(self, source: RangeSource) -> None:
        """Reads the end of the archive: one or two reads. `open` also takes a path."""
        tail_offset = max(source.size_bytes - _TAIL_BYTES, 0)
        self._source: RangeSource = WithTail(source, tail_offset)
        self.address = source.address
        self.size_bytes = source.size_bytes
        self.manifest: Manifest | None = None
        self.closing_damage: Damage | None = None
        """Why the manifest of an archive that has one cannot be used."""
        try:
            self.manifest = find_manifest(self._source)
        except DamagedArchive as e:
            self.closing_damage = Damage(e.message)
        self._lock = threading.Lock()
        self._listing: Listing | None = None
        self._pages: dict[int, dict[str, MemberEntry]] = {}
        self._frames: list[FrameEntry] = self.manifest.frames() if self.manifest else []

    @classmethod
    def open(cls, source: Path | str | RangeSource) -> Archive:
        """Open a local path, or anything that reads ranges (`StoredArchive`)."""
        return cls(LocalFile(Path(source)) if isinstance(source, (str, Path)) else source)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- listing and reading -------------------------------------------------------------------

    def listing(self) -> Listing:
        """All members that can be listed. From the manifest, or by reading everything."""
        with self._lock:
            if self._listing is None and self.manifest:
                try:
                    self._listing = Listing(read_pages(self._source, self.manifest), ())
                except DamagedArchive as e:
                    self._give_up_manifest(e)
            if self._listing is None:
                self._listing = self._scan_listing()
            return self._listing

    def _give_up_manifest(self, damage: DamagedArchive) -> None:
        """From here on this archive is read from front to back."""
        self.manifest, self.closing_damage = None, Damage(damage.message)

    def _scan_listing(self) -> Listing:
        members: list[MemberEntry] = []
        damages = []
        for item in self._scan():
            if isinstance(item, Damage):
                damages.append(item)
            elif item.kind == "file" and _is_whole(item):
                entry = MemberEntry(
                    item.name, item.size_bytes, None, item.offset, item.header_bytes
                )
                members.append(entry)
        return Listing(members, damages)

    def names(self) -> list[str]:
        """The names of all members, in no order: what is quickest of all about them.

        Raises `DamagedArchive` where `members` does.
        """
        with self._lock:
            if self.manifest:
                try:
                    return read_names(self._source, self.manifest)
                except DamagedArchive as e:
                    self._give_up_manifest(e)
        return [member.name for member in self.members]

    @property
    def members(self) -> Sequence[MemberEntry]:
        """All members. Raises `DamagedArchive` if the archive has no manifest and is damaged."""
        listing = self.listing()
        if listing.damages:
            raise DamagedArchive(str(listing.damages[0]), hint=_RESTORE_HINT)
        return listing.members

    def read(self, name: str) -> bytes:
        """One member, whole and verified: by two reads if the archive has a manifest.

        Raises `StoreRefused` if there is no such member, `DamagedArchive` if it is damaged.
        """
        return b"".join(self.stream(name))

    def stream(self, name: str) -> Iterator[memoryview]:
        """One member in pieces. Damage may show only behind the last piece."""
        member = self._find(name)
        if member is None:
            yield from self._stream_by_scan(name)
            return
        reader = FrameReader(self._source, self._frames, member.offset, member.end)
        try:
            yield from reader.payload(member)
        except DamagedArchive as e:
            raise DamagedArchive(f"{name!r}: {e.message}", hint=e.hint) from e

    def _find(self, name: str) -> MemberEntry | None:
        """A member by its page; None if there is no manifest that can be used."""
        with self._lock:
            if self.manifest is None:
                return None
            if not self.manifest.page_sizes:
                raise self._no_member(name)
            index = self.manifest.page_of(name)
            if index not in self._pages:
                try:
                    page = read_page(self._source, self.manifest, index)
                except DamagedArchive as e:
                    self._give_up_manifest(e)
                    return None
                self._pages[index] = {m.name: m for m in page}
            found = self._pages[index].get(name)
        if found is None:
            raise self._no_member(name)
        return found

    def _stream_by_scan(self, name: str) -> Iterator[memoryview]:
        damage = None
        for item in self._scan():
            if isinstance(item, Damage):
                damage = damage or item
            elif item.name == name and item.kind == "file":
                yield from item.chunks()
                return
        if damage:
            raise DamagedArchive(f"{name!r} was not found, but the archive is damaged: {damage}")
        raise self._no_member(name)

    def _no_member(self, name: str) -> StoreRefused:
        return StoreRefused(
            f"{self.address} has no member {name!r}", hint="fuploader ls shows the members"
        )

    def _scan(self) -> Iterator[ScannedMember | Damage]:
        if self.closing_damage:
            yield self.closing_damage
        else:
            refuse_foreign(self._source)
        yield from scan(self._source, manifest_doubted=self.closing_damage is not None)

    def payloads(self, chosen: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and payload of each chosen member, in the order of the archive.

        Read in few large steps. Raises `DamagedArchive` where the first damage lies.
        """
        members = self._indexed_members()
        if members is None:
            for item in self._scan():
                if isinstance(item, Damage):
                    raise DamagedArchive(str(item), hint=_RESTORE_HINT)
                if item.kind == "file" and chosen(item.name):
                    yield item.name, b"".join(item.chunks())
            return
        for stretch in stretches([m for m in members if chosen(m.name)], self._frames):
            reader = FrameReader(self._source, self._frames, stretch.start, stretch.stop)
            for member in stretch.members:
                yield member.name, b"".join(reader.payload(member))

    # -- verifying -----------------------------------------------------------------------------

    def verify(self, *, threads: int = 2, progress: Progress | None = None) -> VerifyReport:
        """Read everything and compare every byte with what the manifest vouches for."""
        members = self._indexed_members()
        count = WholeMembers(progress, sum(m.size_bytes for m in members or ()))
        damages = []
        if self.manifest is None or members is None:
            for item in self._scan():
                if isinstance(item, Damage):
                    damages.append(item)
                elif _is_whole(item) and item.kind == "file":
                    count.add(item.size_bytes)
        else:
            for found in self._in_threads(
                lambda _, payload: _drain(payload), members, threads, count
            ):
                damages += found.damages
            damages += closing_damages(self._source, self.manifest)
        return VerifyReport(count.members, count.size_bytes, damages, self.manifest is not None)

    def _in_threads(
        self,
        take: Callable[[MemberEntry, Iterator[memoryview]], None],
        members: Sequence[MemberEntry],
        threads: int,
        count: WholeMembers,
    ) -> Iterator[_Trouble]:
        """Let `take` read the members, several stretches of the archive at a time."""

        def run(stretch: Stretch) -> _Trouble:
            reader = FrameReader(self._source, self._frames, stretch.start, stretch.stop)
            trouble = _Trouble([], [])
            for member in stretch.members:
                try:
                    take(member, reader.payload(member))
                except DamagedArchive as e:
                    trouble.damages.append(Damage(e.message, member.name))
                except Refused as e:
                    trouble.refused.append(str(e))
                else:
                    count.add(member.size_bytes)
            return trouble

        with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="read-archive") as pool:
            yield from pool.map(run, stretches(members, self._frames))

    def _indexed_members(self) -> Sequence[MemberEntry] | None:
        """All members by the manifest; None if there is none that can be used."""
        if self.manifest is None:
            return None
        members = self.listing().members
        return members if self.manifest else None

    # -- restoring -----------------------------------------------------------------------------

    def restore(
        self,
        folder: Path,
        pattern: str | None = None,
        *,
        threads: int = 4,
        progress: Progress | None = None,
    ) -> RestoreReport:
        """Write all members, or those whose name matches the pattern (`*`, `?`, `[...]`).

        Damaged members are left out and reported; all others are written. Raises `StoreRefused`
        if no member matches.
        """
        report = RestoreReport()
        with RestoreFolder(folder) as target:
            members = self._indexed_members()
            if members is None:
                self._restore_by_scan(target, pattern, report, progress)
            else:
                chosen = [m for m in members if _matches(m.name, pattern)]
                self._restore_by_manifest(target, chosen, report, threads, progress)
        if pattern is not None and report.is_empty:
            raise no_match(self.address, pattern)
        return report

    def _restore_by_manifest(
        self,
        target: RestoreFolder,
        members: Sequence[MemberEntry],
        report: RestoreReport,
        threads: int,
        progress: Progress | None,
    ) -> None:
        count = WholeMembers(progress, sum(m.size_bytes for m in members))

        unchanged: list[str] = []

        def take(member: MemberEntry, payload: Iterator[memoryview]) -> None:
            if not target.write(member.name, payload):
                unchanged.append(member.name)

        for trouble in self._in_threads(take, members, threads, count):
            report.damages += trouble.damages
            report.refused += trouble.refused
        report.restored, report.size_bytes = count.members, count.size_bytes
        report.unchanged = len(unchanged)

    def _restore_by_scan(
        self,
        target: RestoreFolder,
        pattern: str | None,
        report: RestoreReport,
        progress: Progress | None,
    ) -> None:
        for item in self._scan():
            if isinstance(item, Damage):
                report.damages.append(item)
                continue
            if not _matches(item.name, pattern):
                continue
            try:
                if item.kind == "directory":
                    target.directory(item.name)
                elif item.kind != "file":
                    report.refused.append(f"{item.name!r} is {item.kind}")
                else:
                    report.unchanged += not target.write(item.name, item.chunks())
                    report.restored += 1
                    report.size_bytes += item.size_bytes
            except Refused as e:
                report.refused.append(str(e))
            except DamagedArchive:
                pass  # the scan itself reports it next
            if progress:
                progress(report.size_bytes, 0)


def verify_archive(path: Path) -> VerifyReport:
    """Read a finished local archive back. Raises `DamagedArchive` unless every byte is right."""
    with Archive.open(path) as archive:
        report = archive.verify()
    report.raise_if_damaged()
    return report


def no_match(address: str, pattern: str) -> StoreRefused:
    """What a pattern gets that no member matches: nothing was found, which is no success."""
    return StoreRefused(
        f"{address} has no member that matches {pattern!r}", hint="fuploader ls shows the members"
    )


class _Trouble(NamedTuple):
    damages: list[Damage]
    refused: list[str]


def _drain(payload: Iterable[memoryview]) -> None:
    for _ in payload:
        pass


def _is_whole(member: ScannedMember) -> bool:
    """Read the payload; False if it is damaged (the scan reports it then)."""
    try:
        _drain(member.chunks())
    except DamagedArchive:
        return False
    return True


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is None or fnmatchcase(name, pattern)
