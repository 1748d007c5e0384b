"""The steps of a take-over. Each may be killed at any point and repeated.

A directory goes through these places, in each of which the next look recognises it:

    slot_0_3/                                as FUploader left it
    adopting/slot-9999/dir-000001/files/     renamed in one step; `origin.json` says from where
      + index, seal.json                     every file synced, and named there with its digest
    sealed/slot-9999/dir-000001/             renamed in one step

An archive is renamed to `adopting/slot-9999/dir-000001/archive`, and once it is sealed to its place
among the packed ones, so that it is uploaded as it is.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from fuploader_dagster.delivery.pack import Packed, keep_packed
from fuploader_dagster.disk import durable
from fuploader_dagster.disk.file_digest import digest_of
from fuploader_dagster.disk.layout import Layout, PartitionKey, utc
from fuploader_dagster.disk.own_files import closed_after
from fuploader_dagster.disk.temporaries import is_temporary, remove_unless_held, temporary_folder
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.intake.leftovers import ADOPTED_SLOT, adopting, journal
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots import index
from fuploader_dagster.slots.plain_files import FILES_NAME
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot, encode_seal, make_seal, read_seal
from fuploader_dagster.takeover import plan, staging
from fuploader_dagster.takeover.archives import write_members
from fuploader_dagster.takeover.former_redis import FormerRedis
from fuploader_dagster.takeover.names import as_text, names_in

log = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Called after each step with the number of files that it adopted."""


def apply(
    steps: plan.Plan,
    pipeline: Pipeline,
    redis: FormerRedis | None,
    progress: Progress | None = None,
) -> list[SealedSlot]:
    """Carry the steps out; returns what was sealed. The caller holds the take-over's lock."""
    layout = pipeline.layout
    durable.make_dirs(adopting(layout))
    if steps.stored:
        _keep_identities(steps.stored, pipeline)
    for aside in steps.aside:
        _set_aside(aside, layout)
    sealed = [_finish(staged, layout) for staged in steps.finish]
    for adopt in steps.adopt:
        sealed += _adopt(adopt, pipeline)
        if progress:
            progress(adopt.kept)
    for archive in steps.archives:
        sealed += _take_archive(archive, pipeline)
    for removal in steps.remove:
        removal.path.unlink(missing_ok=True)
        log.info("removed %s: %s", removal.path, removal.because)
        if (staged := removal.path.parent).parent == adopting(layout):
            durable.remove_tree(staged)
    if redis is not None:
        redis.remove(steps.forget)
    for path in steps.empty:
        _remove_empty(path)
    _end(layout)
    return sealed


def _adopt(step: plan.Adopt, pipeline: Pipeline) -> list[SealedSlot]:
    directory, layout = step.directory, pipeline.layout
    staged = directory.path
    if directory.kind != "staged":
        staged = staging.new_directory(
            directory.source, layout, maybe_stored=directory.maybe_stored
        )
        files = staged / FILES_NAME
        if directory.kind == "loose":
            durable.make_dirs(files)
            for file in directory.files:
                _bring(file.path, files / file.name)
        else:
            _bring(directory.path, files)
    for name, because in step.drop.items():
        (staged / FILES_NAME / name).unlink(missing_ok=True)
        log.info("%s is not adopted: %s", name, because)
    return _seal_files(staged, pipeline)


def _keep_identities(stored: Collection[plan.Content], pipeline: Pipeline) -> None:
    """Let the drain recognise what FUploader stored last: some of it may not be acknowledged."""
    layout, members = pipeline.layout, [(name, digest, 0) for name, digest in sorted(stored)]
    # A number that no other directory has: the drain tells indexes apart by it.
    moment, number = utc(time.time()), staging.next_number(layout)
    partition = PartitionKey(moment, pipeline.node, ADOPTED_SLOT, number)
    durable.make_dirs(layout.shipped)
    durable.write_durably(layout.shipped / f"{partition}.{len(members)}.index", _index_of(members))


def _index_of(members: Sequence[plan.Member]) -> bytes:
    return index.whole_index(
        [
            index.record(as_text(name).encode("utf-8"), 0, 0, size, digest)
            for name, digest, size in members
        ]
    )


def _seal_files(staged: Path, pipeline: Pipeline) -> list[SealedSlot]:
    """Sync, index and seal the files of a staged directory."""
    folder = staged / FILES_NAME
    names = list(names_in(folder))
    _sync(folder)  # FUploader never synced any of them
    members = []
    for name in names:
        size, digest = digest_of(folder / name)
        members.append((name, digest, size))
    if not members:
        staging.record_taken_over(staging.origin_of(staged).source, "", 0, pipeline.layout)
        durable.remove_tree(staged)
        return []
    return [_seal(staged, members, pipeline)]


def _sync(folder: Path) -> None:
    """Sync everything in the folder at once."""
    with closed_after(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        durable.syncfs(descriptor)


def _seal(staged: Path, members: Sequence[plan.Member], pipeline: Pipeline) -> SealedSlot:
    content = _index_of(members)
    durable.write_durably(staged / index.INDEX_NAME, content)
    seal = make_seal(
        pipeline,
        slot=ADOPTED_SLOT,
        number=staging.number_of(staged),
        slot_format="files",
        messages=len(members),
        payload_bytes=sum(size for _, _, size in members),
        index_content=content,
        reason="adopted",
        now=time.time(),
    )
    durable.write_durably(staged / SEAL_NAME, encode_seal(seal))
    return _finish(staged, pipeline.layout)


def _finish(staged: Path, layout: Layout) -> SealedSlot:
    """Do what follows the seal, also if a crash interrupted it."""
    seal = read_seal(staged)
    target = layout.archives / seal.archive
    if (staged / staging.ARCHIVE_NAME).exists():
        durable.rename_durably(staged / staging.ARCHIVE_NAME, target)
    if not (staged / FILES_NAME).exists():  # an archive as it is
        size, digest = digest_of(target)
        packed = Packed(
            partition=seal.partition,
            archive=seal.archive,
            size_bytes=size,
            sha256=digest.hex(),
            messages=seal.messages,
            payload_bytes=seal.payload_bytes,
        )
        keep_packed(layout, packed)
    if (staged / staging.ORIGIN_NAME).exists():
        source = staging.origin_of(staged).source
        staging.record_taken_over(source, seal.partition, seal.messages, layout)
        log.warning("took over %s from FUploader as %s", source, seal.partition)
        (staged / staging.ORIGIN_NAME).unlink()
    for path in staged.iterdir():  # of an earlier attempt, from another file system
        if is_temporary(path.name):
            remove_unless_held(path)
    directory = layout.sealed(seal.slot, seal.number)
    durable.rename_durably(staged, directory)
    return SealedSlot(directory, seal)


def _take_archive(step: plan.TakeArchive, pipeline: Pipeline) -> list[SealedSlot]:
    archive = step.archive
    if step.only is not None:
        return _unpack(archive, step.only, pipeline)
    staged = archive.staged
    if staged is None:
        staged = staging.new_directory(archive.source, pipeline.layout)
        _bring(archive.path, staged / staging.ARCHIVE_NAME)
    durable.fsync_file(staged / staging.ARCHIVE_NAME)
    return [_seal(staged, archive.members, pipeline)]


def _unpack(
    archive: plan.LeftArchive, names: Collection[str], pipeline: Pipeline
) -> list[SealedSlot]:
    """Seal the files of an archive that are nowhere else, and remove the archive."""
    layout = pipeline.layout
    staged = staging.new_directory(archive.source, layout)
    with temporary_folder(staged / FILES_NAME) as work:
        folder = work / FILES_NAME
        folder.mkdir()
        refused = write_members(archive.path, names, folder)
        _sync(folder)
        durable.rename_durably(folder, staged / FILES_NAME)
    if refused:
        because = f"{len(refused)} of its members were not taken: {'; '.join(refused[:3])}"
        _set_aside(plan.SetAside(archive.path, because), layout)
    archive.path.unlink(missing_ok=True)
    if archive.staged is not None:
        durable.remove_tree(archive.staged)
    return _seal_files(staged, pipeline)


def _bring(source: Path, target: Path) -> None:
    """Move a file or directory, also from another file system: it is there whole or not at all."""
    try:
        durable.rename_durably(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        durable.make_dirs(target.parent)
        with temporary_folder(target) as work:
            copy = work / target.name
            if source.is_dir():
                shutil.copytree(source, copy, symlinks=True)
            else:
                shutil.copyfile(source, copy)
            os.sync()
            _compare(source, copy)
            durable.rename_durably(copy, target)
        if source.is_dir():
            durable.remove_tree(source)
        else:
            source.unlink()


def _compare(source: Path, copy: Path) -> None:
    pairs = [(source, copy)]
    if source.is_dir():
        pairs = [(path, copy / path.relative_to(source)) for path in source.rglob("*")]
    for ours, theirs in pairs:
        if ours.is_file() and digest_of(ours) != digest_of(theirs):
            raise DamagedSlot(
                f"the copy of {ours} differs from the original",
                hint="the original was kept; check the disk, which seems to be failing",
            )


def _set_aside(step: plan.SetAside, layout: Layout) -> None:
    name = f"{time.time_ns()}-{step.path.name}"
    with suppress(FileNotFoundError):
        _bring(step.path, layout.set_aside / name)
        log.error("%s was moved to %s: %s", step.path, layout.set_aside / name, step.because)


def _remove_empty(path: Path) -> None:
    """Remove a directory with the empty directories in it; one that holds a file stays."""
    for parent, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            Path(parent).rmdir()


def _end(layout: Layout) -> None:
    """End the take-over, unless something is still staged. Once the journal exists, keys that are
    left in Redis no longer keep the pipeline from starting."""
    folder = adopting(layout)
    for staged in staging.directories(layout):
        names = {path.name for path in staged.iterdir() if not is_temporary(path.name)}
        if names <= {staging.ORIGIN_NAME}:
            durable.remove_tree(staged)
    durable.append_durably(journal(layout), b"")
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
        durable.fsync_dir(layout.root)
