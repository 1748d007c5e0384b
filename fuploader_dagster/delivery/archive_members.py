"""What goes into an archive: the messages of a sealed slot, what came out of them, or both.

What must always hold:

- Originals come first, then results, each as their directory has them: their names, their order,
  and, unless a name has to change, their bytes, which the directory's digest proves.
- No member hides another, in the archive or unpacked. The names of results begin with `results/`.
  Only directories that were adopted from another program can have such originals: then what clashes
  with an original gets a number (`results/a~2.json`).
- Damage is blamed on the directory that has it. Damaged results are moved to `set-aside/`, and can
  be made again; a damaged original raises `DamagedSlot`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fuploader_dagster.archives.manifest import FAILURES_KEY, RESULTS_KEY, FailedPart, listed
from fuploader_dagster.archives.members import MemberSource, MemberToPack
from fuploader_dagster.delivery.slot_members import FolderMembers, RenamedMembers, SegmentMembers
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.errors import DamagedResults, DamagedSlot, PermanentError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry
from fuploader_dagster.slots.numbered_names import numbered_name
from fuploader_dagster.slots.plain_files import find_by_content
from fuploader_dagster.slots.processed import ProcessedSlot, find_processed
from fuploader_dagster.slots.result_files import file_name
from fuploader_dagster.slots.sealing import SealedSlot


@dataclass(frozen=True)
class ArchiveMembers:
    """What to pack. Sources are open; whoever made this closes them."""

    messages: int
    """Of the slot."""
    originals: MemberSource | None
    """None: the archive holds only results."""
    results: MemberSource | None = None
    """None: it holds only originals."""
    processed: bool = False
    """Whether the slot's messages were processed, so that there may be results."""
    processing: str = ""
    """`Processing.id` of that, if it is known."""
    failures: Sequence[FailedPart] = ()
    """Parts of messages that have no results, as many as the manifest has room for."""
    failure_count: int = 0
    """Of all of them."""

    @property
    def sources(self) -> Sequence[MemberSource]:
        return [source for source in (self.originals, self.results) if source is not None]

    @property
    def metadata(self) -> Mapping[str, str]:
        """For the manifest."""
        count = len(self.results.members) if self.results is not None else 0
        failures = {FAILURES_KEY: str(self.failure_count)} if self.failure_count else {}
        return {**failures, RESULTS_KEY: str(count)} if self.processed else {}


@contextmanager
def members_of(slot: SealedSlot, pipeline: Pipeline, layout: Layout) -> Iterator[ArchiveMembers]:
    """What the archive of this slot holds, for the block.

    `layout`: where the slot's archive and results are. Raises `DamagedSlot` if the slot contradicts
    its index or its seal, `DamagedResults` if what was processed does.
    """
    keep = "originals" if pipeline.process is None else pipeline.process.keep
    archive = layout.archives / slot.seal.archive
    with ExitStack() as stack:
        originals = results = None
        processing = ""
        failures: Sequence[FailedPart] = ()
        failure_count = 0
        if keep != "results":
            originals = stack.enter_context(_originals(slot, archive))
        if pipeline.process is not None:
            processed = _processed(slot, layout)
            processing = processed.seal.processing.id
            stack.enter_context(_put_aside_if_damaged(processed, layout))
            failures, failure_count = listed(processed.failures()), processed.seal.failures
            if keep != "originals":
                results = stack.enter_context(_results(processed))
        if originals is not None and results is not None:
            renamed = clashes(_names(originals.members), _names(results.members))
            originals, results = _renamed(originals, renamed[0]), _renamed(results, renamed[1])
        yield ArchiveMembers(
            slot.seal.messages,
            originals,
            results,
            processed=pipeline.process is not None,
            processing=processing,
            failures=failures,
            failure_count=failure_count,
        )


def names_in(slot: SealedSlot, layout: Layout, *, originals: bool, results: bool) -> Sequence[str]:
    """The names in an archive of the slot that cannot be read, made by a user's packer."""
    first = _names(slot.entries()) if originals else []
    second = _names(_processed(slot, layout).entries()) if results else []
    renamed, renamed_results = clashes(first, second)
    return [
        *(renamed.get(index, name) for index, name in enumerate(first)),
        *(renamed_results.get(index, name) for index, name in enumerate(second)),
    ]


def clashes(
    originals: Sequence[str], results: Sequence[str]
) -> tuple[dict[int, str], dict[int, str]]:
    """Free names for those of the originals and of the results that would hide others."""
    folders, folders_of_results = _folders(originals), _folders(results)
    taken = {*originals, *results, *folders, *folders_of_results}
    renamed = _numbered(originals, folders_of_results, taken)
    return renamed, _numbered(results, {*originals, *folders}, taken)


def _renamed(source: MemberSource, names: Mapping[int, str]) -> MemberSource:
    return RenamedMembers(source, names) if names else source


def _names(members: Iterable[MemberToPack]) -> list[str]:
    return [member.name for member in members]


def _folders(names: Iterable[str]) -> set[str]:
    """The folders that unpacking these names makes."""
    parents = {name.rpartition("/")[0] for name in names if "/" in name}
    return {str(folder) for path in parents for folder in (path, *PurePosixPath(path).parents)}


def _numbered(names: Sequence[str], clashing: Collection[str], taken: set[str]) -> dict[int, str]:
    """A free name for each of these that clashes, by its index; it is taken then."""
    found: dict[int, str] = {}
    for index, name in enumerate(names):
        if name not in clashing:
            continue
        folder, slash, last = name.rpartition("/")
        number = 2
        while (free := f"{folder}{slash}{numbered_name(last, number)}") in taken:
            number += 1
        taken.add(free)
        found[index] = free
    return found


def _originals(slot: SealedSlot, archive: Path) -> MemberSource:
    """The slot's messages. Raises `DamagedSlot` if the slot contradicts itself, or has no data.

    The slot of a FUploader archive that was taken over as it is has none.
    """
    data = slot.segment if slot.seal.slot_format == "segment" else slot.files
    if not data.exists() and archive.exists():
        raise PermanentError(
            f"{slot.directory} has no data, and its archive {archive} is not the one that was "
            f"noted at the take-over",
            hint="put the archive that was taken over back in its place",
        )
    for path in (slot.directory / INDEX_NAME, data):
        if not path.exists():
            raise DamagedSlot(
                f"{path} is missing", hint="something removed it from the sealed slot"
            )
    entries = slot.entries()
    sealed = (slot.seal.messages, slot.seal.payload_bytes)
    if _totals(entries) != sealed:
        raise DamagedSlot(
            f"the seal in {slot.directory} says {sealed[0]} messages and {sealed[1]} bytes, which "
            f"is not what its index has"
        )
    if slot.seal.slot_format == "files":
        find_by_content(slot.files, entries)  # an older version wrote it under another locale
        return FolderMembers(slot.files, entries)
    offsets = [entry.offset for entry in entries]
    return SegmentMembers(slot.segment, entries, offsets, slot.seal.segment_xxh128)


def _processed(slot: SealedSlot, layout: Layout) -> ProcessedSlot:
    found = find_processed(slot, layout)
    if found is None:
        raise PermanentError(
            f"{slot.seal.partition} is not processed yet, so it cannot be packed",
            hint="materialise its processed slot first, or use `fuploader ship`, which does both",
        )
    return found


def _results(processed: ProcessedSlot) -> MemberSource:
    """What came out of the slot's messages. Raises `DamagedResults`."""
    index, data = processed.directory / INDEX_NAME, processed.data
    for path, kind in ((index, "file"), (data, "folder" if processed.has_files else "file")):
        if not (path.is_file() if kind == "file" else path.is_dir()):
            raise DamagedResults(f"{path} is missing, or is no {kind}")
    entries = processed.entries()
    sealed = (processed.seal.results, processed.seal.payload_bytes)
    if _totals(entries) != sealed:
        raise DamagedResults(
            f"the seal in {processed.directory} says {sealed[0]} results and {sealed[1]} bytes, "
            f"which is not what its index has"
        )
    if processed.has_files:
        names = [file_name(entry.offset) for entry in entries]
        return FolderMembers(processed.data, entries, names, damage=DamagedResults)
    offsets, xxh128 = [entry.offset for entry in entries], processed.seal.segment_xxh128
    return SegmentMembers(processed.segment, entries, offsets, xxh128, damage=DamagedResults)


@contextmanager
def _put_aside_if_damaged(processed: ProcessedSlot, layout: Layout) -> Iterator[None]:
    try:
        yield
    except DamagedResults as error:
        target = set_aside(processed.directory, layout)
        raise DamagedResults(
            f"{error.message}; what was processed was moved to {target}",
            hint="the next attempt processes the slot again",
        ) from error


def _totals(entries: Sequence[IndexEntry]) -> tuple[int, int]:
    return len(entries), sum(entry.size_bytes for entry in entries)
