"""Reading an archive back: list, read one member, verify, restore; from a disk or from a store.

What must always hold:

- Bytes that contradict the manifest are never returned as a whole member.
- Whatever is wrong with an archive is reported with the member's name or the offset. A damaged
  archive causes nothing but errors of this package.
- Restoring never writes outside its folder (`restore_folder`), and recovers all that is intact.

An archive with a manifest is read from its end: tail, manifest, and then only the frames that are
needed. Any other `.tar.zst`, and one of ours whose end is damaged, is read from front to back
(`tar_scan`): everything works, but slowly, and without digests of the members. What is not a
`.tar.zst` at all raises `ForeignArchive` (`foreign`).

    with Archive.open(Path("a.tar.zst")) as archive:
        for member in archive.members: print(member.name, member.size_bytes)
        payload = archive.read("1.json")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from fuploader_dagster.archives import foreign, reports
from fuploader_dagster.archives.entries import FrameEntry, MemberEntry
from fuploader_dagster.archives.forms import closing_damages, find_manifest, reader_for
from fuploader_dagster.archives.frame_reader import FrameReader, Stretch, stretches
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.line_frames import ScannedLine, is_lines, scan_lines
from fuploader_dagster.archives.listed_members import read_names, read_page, read_pages
from fuploader_dagster.archives.manifest import FailedPart, Manifest
from fuploader_dagster.archives.memory_budget import DEFAULT_MEMORY_BYTES, Budget, too_large
from fuploader_dagster.archives.ranges import LocalFile, RangeSource, WithTail
from fuploader_dagster.archives.restore_folder import Refused, RestoreFolder
from fuploader_dagster.archives.scanned_members import matches, restore_scanned, stream_last
from fuploader_dagster.archives.tar_scan import ScannedMember, scan
from fuploader_dagster.contracts.object_store import Progress
from fuploader_dagster.errors import DamagedArchive, StoreRefused, TooLarge

_TAIL_BYTES = 2**16
"""Read first: the seek table of an archive of 8 GiB, and often the whole manifest."""

_Found = TypeVar("_Found")


class Archive:
    """An open archive. Safe to use from several threads; a context manager."""

    def __init__(self, source: RangeSource, *, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        """Read the end of the archive, in one or two reads. `open` also takes a path.

        `memory_bytes`: what one piece of the archive, or a list of its members, may take. If it
        needs more, reading raises `TooLarge`.
        """
        self._memory_bytes = memory_bytes
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
        self.unproven = reports.Unproven()
        """Members of the last scan whose bytes nothing proves."""
        self._found = self.manifest
        """Stays, as readers of other threads need it, when its pages turn out to be damaged."""
        self._lock = threading.Lock()
        self._listing: reports.Listing | None = None
        self._pages: dict[int, dict[str, MemberEntry]] = {}
        self._frames: list[FrameEntry] = self.manifest.frames() if self.manifest else []

    @classmethod
    def open(
        cls, source: Path | str | RangeSource, *, memory_bytes: int = DEFAULT_MEMORY_BYTES
    ) -> Archive:
        """Open a local path, or anything that reads ranges (such as `StoredArchive`)."""
        opened = LocalFile(Path(source)) if isinstance(source, (str, Path)) else source
        return cls(opened, memory_bytes=memory_bytes)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- listing and reading -------------------------------------------------------------------

    def listing(self) -> reports.Listing:
        """All members that can be listed, from the manifest or by reading everything."""
        with self._lock:
            if self._listing is None:
                members = self._in_pages(lambda m: read_pages(self._source, m, self._budget()))
                self._listing = (
                    self._scan_listing() if members is None else reports.Listing(members, ())
                )
            return self._listing

    def _budget(self) -> Budget:
        return Budget(self.address, self._memory_bytes)

    def _in_pages(self, read: Callable[[Manifest], _Found]) -> _Found | None:
        """What `read` finds in the manifest's pages; None if there is no usable manifest.

        Once a page turns out to be damaged, the archive is read from front to back.
        """
        if self.manifest is None:
            return None
        try:
            return read(self.manifest)
        except DamagedArchive as e:
            self.manifest, self.closing_damage = None, Damage(e.message)
            return None

    def _scan_listing(self) -> reports.Listing:
        members: list[MemberEntry] = []
        damages: list[Damage] = []
        others: list[reports.Other] = []
        budget = self._budget()
        for item in self._scan():
            budget.hold(1, 0 if isinstance(item, Damage) else len(item.name))
            if isinstance(item, Damage):
                damages.append(item)
            elif item.kind == "file" and item.read_to_end():
                place = (item.offset, item.header_bytes, item.headers)
                members.append(MemberEntry(item.name, item.size_bytes, None, *place))
            elif item.kind not in ("file", "directory"):
                others.append(reports.Other(item.name, item.kind))
        return reports.Listing(members, damages, others)

    def names(self) -> list[str]:
        """The names of all members, in no particular order: the fastest listing.

        Raises `DamagedArchive` where `members` does.
        """
        with self._lock:
            names = self._in_pages(lambda m: read_names(self._source, m, self._budget()))
        return [member.name for member in self.members] if names is None else names

    @property
    def members(self) -> Sequence[MemberEntry]:
        """All members. Raises `DamagedArchive` if the archive has no manifest and is damaged."""
        listing = self.listing()
        if listing.damages:
            raise DamagedArchive(str(listing.damages[0]), hint=reports.RESTORE_HINT)
        return listing.members

    def results(self) -> set[str]:
        """Names of the members that are results, not messages. Only a manifest tells them apart."""
        count = self.manifest.results if self.manifest is not None else 0
        members = self._indexed_members() if count else None
        return {member.name for member in members[-count:]} if members else set()

    def failures(self) -> Sequence[FailedPart]:
        """Parts of items that have no result, as many as the manifest lists."""
        return self.manifest.failures if self.manifest is not None else ()

    def member(self, name: str) -> MemberEntry | None:
        """One member, without its content; None if the archive has no manifest to look into.

        Raises `StoreRefused` if there is no such member.
        """
        return self._find(name)

    def read(self, name: str) -> bytes:
        """One member, whole and verified; two reads if the archive has a manifest.

        Raises `StoreRefused` if there is no such member, `DamagedArchive` if it is damaged.
        """
        return b"".join(self.stream(name))

    def stream(self, name: str) -> Iterator[memoryview]:
        """One member in pieces. Damage may show only after the last piece."""
        member = self._find(name)
        if member is None:
            if not (yield from stream_last(self._scan, name, self.address)):
                raise self._no_member(name)
            return
        reader = self._reader(member.offset, member.end)
        try:
            yield from reader.payload(member)
        except DamagedArchive as e:
            raise DamagedArchive(f"{name!r}: {e.message}", hint=e.hint) from e

    def _reader(self, start: int, stop: int) -> FrameReader:
        assert self._found is not None  # noqa: S101 - or there would be no places to read
        reader = reader_for(self._found)
        frames, memory = self._frames, self._memory_bytes
        return reader(self._source, self._found, frames, start, stop, memory_bytes=memory)

    def _find(self, name: str) -> MemberEntry | None:
        """A member, found by its page; None if there is no usable manifest."""
        with self._lock:
            if self.manifest is None:
                return None
            if not self.manifest.page_sizes:
                raise self._no_member(name)
            index = self.manifest.page_of(name)
            if index not in self._pages:
                page = self._in_pages(lambda m: read_page(self._source, m, index))
                if page is None:
                    return None
                self._pages[index] = {m.name: m for m in page}
            found = self._pages[index].get(name)
        if found is None:
            raise self._no_member(name)
        return found

    def _no_member(self, name: str) -> StoreRefused:
        return StoreRefused(
            f"{self.address} has no member {name!r}", hint="fuploader ls lists the members"
        )

    def _scan(self) -> Iterator[ScannedMember | ScannedLine | Damage]:
        self.unproven = reports.Unproven()
        source, memory = self._source, self._memory_bytes
        doubted = self.closing_damage is not None
        if self.closing_damage:
            yield self.closing_damage
            if foreign.needs_manifest(source):
                return
        else:
            foreign.refuse_cut_off(source)
            foreign.refuse_foreign(source)
        scanned = scan_lines if is_lines(source, memory) else scan
        for item in scanned(source, manifest_doubted=doubted, memory_bytes=memory):
            yield item
            if not isinstance(item, Damage) and item.kind == "file" and item.is_unproven:
                self.unproven.add(item.name)

    def payloads(self, chosen: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and payload of each chosen member; otherwise as `files`."""
        for file in self.files(chosen):
            yield file.name, file.content

    def files(self, chosen: Callable[[str], bool]) -> Iterator[reports.ArchivedFile]:
        """Each member whose name is chosen, whole; otherwise as `open_files`."""
        for file in self.open_files(chosen):
            if file.size_bytes > self._memory_bytes:
                what = f"the member {file.name!r} of {self.address}"
                raise too_large(what, file.size_bytes, self._memory_bytes)
            yield reports.ArchivedFile(file.name, b"".join(file.pieces), file.headers)

    def open_files(self, chosen: Callable[[str], bool]) -> Iterator[reports.OpenFile]:
        """Each member whose name is chosen, in the order of the archive.

        Reads in a few large steps. Raises `DamagedArchive` at the first damage. Members of an
        archive without a manifest may be `unproven`; of two with the same name the last one counts.
        """
        members = self._indexed_members()
        if members is None:
            last = {member.name: member.offset for member in self.members}
            for item in self._scan():
                if isinstance(item, Damage):
                    raise DamagedArchive(str(item), hint=reports.RESTORE_HINT)
                if last.get(item.name) == item.offset and chosen(item.name):
                    yield reports.OpenFile(item.name, item.size_bytes, item.headers, item.chunks())
            return
        for stretch in stretches([m for m in members if chosen(m.name)], self._frames):
            reader = self._reader(stretch.start, stretch.stop)
            for member in stretch.members:
                pieces = reader.payload(member)
                yield reports.OpenFile(member.name, member.size_bytes, member.headers, pieces)

    def verify_whole(self, sha256: str, progress: Progress | None = None) -> None:
        """Compare all bytes of the archive with a digest. Raises `DamagedArchive`."""
        foreign.verify_whole(self._source, sha256, progress)

    # -- verifying -----------------------------------------------------------------------------

    def verify(self, *, threads: int = 2, progress: Progress | None = None) -> reports.VerifyReport:
        """Read everything, and compare every byte with the manifest."""
        members = self._indexed_members()
        count = reports.WholeMembers(progress, sum(m.size_bytes for m in members or ()))
        damages = []
        if self.manifest is None or members is None:
            for item in self._scan():
                if isinstance(item, Damage):
                    damages.append(item)
                elif item.read_to_end() and item.kind == "file":
                    count.add(item.size_bytes)
        else:
            for found in self._in_threads(_check, members, threads, count):
                damages += found.damages
                if found.refused:
                    raise TooLarge(found.refused[0])
            damages += closing_damages(self._source, self.manifest)
        whole = self.manifest is not None
        return reports.VerifyReport(count.members, count.size_bytes, damages, whole, self.unproven)

    def _in_threads(
        self,
        take: Callable[[FrameReader, MemberEntry], None],
        members: Sequence[MemberEntry],
        threads: int,
        count: reports.WholeMembers,
    ) -> Iterator[_Trouble]:
        """Let `take` read the members, several stretches of the archive at once."""

        def run(stretch: Stretch) -> _Trouble:
            reader = self._reader(stretch.start, stretch.stop)
            trouble = _Trouble([], [])
            for member in stretch.members:
                try:
                    take(reader, member)
                except DamagedArchive as e:
                    trouble.damages.append(Damage(e.message, member.name))
                except (Refused, TooLarge) as e:
                    trouble.refused.append(str(e))
                else:
                    count.add(member.size_bytes)
            return trouble

        with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="read-archive") as pool:
            yield from pool.map(run, stretches(members, self._frames))

    def _indexed_members(self) -> Sequence[MemberEntry] | None:
        """All members by the manifest; None if there is no usable one."""
        if self.manifest is None:
            return None
        members = self.listing().members
        return members if self.manifest else None

    # -- restoring -----------------------------------------------------------------------------

    def restore(
        self,
        folder: Path | str,
        pattern: str | None = None,
        *,
        threads: int = 4,
        progress: Progress | None = None,
    ) -> reports.RestoreReport:
        """Write all members, or those whose name matches the pattern (`*`, `?`, `[...]`).

        Damaged members are reported, and all others written. Raises `StoreRefused` if no member
        matches.
        """
        report = reports.RestoreReport()
        with RestoreFolder(Path(folder)) as target:
            members = self._indexed_members()
            if members is None:
                restore_scanned(self._scan(), target, pattern, report, progress)
                report.unproven = self.unproven
            else:
                chosen = [m for m in members if matches(m.name, pattern)]
                self._restore_by_manifest(target, chosen, report, threads, progress)
        if pattern is not None and report.is_empty:
            raise no_match(self.address, pattern)
        return report

    def _restore_by_manifest(
        self,
        target: RestoreFolder,
        members: Sequence[MemberEntry],
        report: reports.RestoreReport,
        threads: int,
        progress: Progress | None,
    ) -> None:
        count = reports.WholeMembers(progress, sum(m.size_bytes for m in members))
        unchanged: list[str] = []

        def take(reader: FrameReader, member: MemberEntry) -> None:
            if not target.write(member.name, reader.payload(member)):
                unchanged.append(member.name)

        for trouble in self._in_threads(take, members, threads, count):
            report.damages += trouble.damages
            report.refused += trouble.refused
        report.restored, report.size_bytes = count.members, count.size_bytes
        report.unchanged = len(unchanged)


def no_match(address: str, pattern: str) -> StoreRefused:
    """The error for a pattern that no member matches."""
    return StoreRefused(
        f"{address} has no member that matches {pattern!r}", hint="fuploader ls lists the members"
    )


class _Trouble(NamedTuple):
    damages: list[Damage]
    refused: list[str]


def _check(reader: FrameReader, member: MemberEntry) -> None:
    reader.check(member)
