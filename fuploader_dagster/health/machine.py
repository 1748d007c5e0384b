"""The machine that a pipeline runs on: its disk and its limits, and what they mean for it.

`read_disk` and `open_files_limit` look at the machine; everything else decides from values.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.disk import durable
from fuploader_dagster.disk.temporaries import temporary_name
from fuploader_dagster.intake.disk_space import space_of
from fuploader_dagster.settings.pipeline import Intake

IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
OVER_THE_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs", "lustre"}
WITHOUT_FSYNC_OPTIONS = {"nobarrier", "barrier=0"}
PROBES = 5
PROBE_BYTES = 64 * 1024
SLOW_FSYNC_SECONDS = 0.05
OPEN_FILES_OF_A_PROCESS = 256
"""Libraries, database, broker and store connections of one process, with some to spare."""
OPEN_FILES_PER_SLOT = 4


@dataclass(frozen=True)
class Disk:
    """A folder's file system, as the kernel describes it."""

    folder: Path
    kind: str
    """`ext4`, `xfs`, ...; empty if the kernel does not say."""
    options: frozenset[str]
    journal: bool | None
    """None if unknown, or if this kind of file system needs none."""
    free_bytes: int
    free_inodes: int | None
    """None for file systems that do not count inodes."""
    fsync_seconds: float
    """Median of several small durable writes."""


def read_disk(folder: Path) -> Disk:
    """Time a few small durable writes to the folder and ask the kernel for the rest.

    Creates the folder if it is missing, as the first worker would. Raises `OSError` or `DiskFull`
    if the folder cannot be created or written.
    """
    space = space_of(folder, unshipped_bytes=0)
    kind, options, device = _mount_of(folder.resolve())
    return Disk(
        folder,
        kind,
        options,
        _has_journal(device) if kind in ("ext3", "ext4") else None,
        space.free_bytes,
        space.free_inodes,
        _seconds_to_write(folder),
    )


def judge_disk(disk: Disk, pipeline: Intake) -> Iterator[Diagnosis]:
    """What the disk means for a pipeline, one diagnosis for each property."""
    yield _free_space(disk, pipeline)
    yield _inodes(disk, pipeline)
    yield _file_system(disk)
    yield _fsync(disk)


def judge_open_files(limit: int, pipeline: Intake) -> Diagnosis:
    """Whether a worker and a run have enough file descriptors. `limit` is the soft limit."""
    needed = OPEN_FILES_OF_A_PROCESS + OPEN_FILES_PER_SLOT * pipeline.slots_per_worker
    found = f"a process may open {limit:,} files; a worker needs up to {needed:,}"
    if limit < needed:
        hint = "raise the limit: `ulimit -n`, or LimitNOFILE in the systemd unit"
        return Diagnosis("open files", "wrong", found, hint)
    return Diagnosis("open files", "good", found)


def open_files_limit() -> int:
    """The soft limit of this process; its children inherit it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def _free_space(disk: Disk, pipeline: Intake) -> Diagnosis:
    slots = pipeline.process_count * pipeline.slots_per_worker
    growing = slots * pipeline.seal_bytes * 2  # while a slot is packed its data is there twice
    verdict = partial(Diagnosis, "disk space")
    found = (
        f"{_mib(disk.free_bytes)} free in {disk.folder}; the drain pauses below "
        f"{_mib(pipeline.min_free_bytes)}, full slots take up to {_mib(growing)}"
    )
    if disk.free_bytes < pipeline.min_free_bytes:
        return verdict("wrong", found, "free some space, or lower min_free_bytes")
    if disk.free_bytes < pipeline.min_free_bytes + growing:
        hint = "the drain will pause while slots wait for their upload: free some space, or lower "
        return verdict("warning", found, hint + "seal_bytes")
    return verdict("good", found)


def _inodes(disk: Disk, pipeline: Intake) -> Diagnosis:
    verdict = partial(Diagnosis, "inodes")
    if disk.free_inodes is None:
        return verdict("good", f"{disk.kind or 'the file system'} does not count them")
    slots = pipeline.process_count * pipeline.slots_per_worker
    files = pipeline.seal_messages if pipeline.slot_format == "files" else 8
    needed = 2 * slots * files + pipeline.min_free_inodes
    found = f"{disk.free_inodes:,} free; min_free_inodes and full slots need {needed:,}"
    if disk.free_inodes < needed:
        hint = "remove small files, lower seal_messages, or use slot_format: segment"
        return verdict("wrong", found, hint)
    return verdict("good", found)


def _file_system(disk: Disk) -> Diagnosis:
    verdict = partial(Diagnosis, "file system")
    what = f"{disk.folder} is on {disk.kind or 'a file system of unknown kind'}"
    if disk.kind in IN_MEMORY:
        return verdict(
            "wrong",
            f"{what}: its content, with every acknowledged message, is lost when the machine stops",
            "set storage_root to a folder on a disk",
        )
    if unsafe := sorted(disk.options & WITHOUT_FSYNC_OPTIONS):
        return verdict(
            "wrong",
            f"{what}, mounted with {', '.join(unsafe)}: a power cut can undo what was synced",
            "mount it without these options",
        )
    if disk.kind in OVER_THE_NETWORK or disk.kind.startswith("fuse"):
        return verdict(
            "warning",
            f"{what}: its server decides what fsync and locks really do",
            "prefer a local disk for storage_root; slots leave it within minutes anyway",
        )
    if disk.kind == "overlay":
        return verdict(
            "warning",
            f"{what}: its content is lost when the container is removed",
            "mount a volume of the host at storage_root",
        )
    if disk.journal is False:
        return verdict(
            "warning",
            f"{what} without a journal: a crash needs a long check and can damage directories",
            "add a journal (`tune2fs -O has_journal` on the unmounted device)",
        )
    return verdict("good", what + (" with a journal" if disk.journal else ""))


def _fsync(disk: Disk) -> Diagnosis:
    found = f"a small durable write takes {disk.fsync_seconds * 1000:.1f} ms"
    if disk.fsync_seconds > SLOW_FSYNC_SECONDS:
        hint = "each commit waits for one: raise commit_messages and prefetch_count, or use another"
        return Diagnosis("fsync", "warning", found, hint + " disk")
    return Diagnosis("fsync", "good", found)


def _seconds_to_write(folder: Path) -> float:
    probe = temporary_name(folder / "doctor")  # recovery removes it if this is killed
    seconds = []
    try:
        for _ in range(PROBES):
            started = time.perf_counter()
            durable.write_durably(probe, os.urandom(PROBE_BYTES))
            seconds.append(time.perf_counter() - started)
    finally:
        durable.remove_file(probe)
    return statistics.median(seconds)


def _mount_of(folder: Path) -> tuple[str, frozenset[str], str]:
    """Kind, options and device number of the mount that a folder is on."""
    longest, found = -1, ("", frozenset[str](), "")
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return found
    for line in lines:
        before, _, after = line.partition(" - ")
        _, _, device, _, escaped, own_options, *_ = before.split()
        kind, _, shared_options = after.split(maxsplit=2)
        point = escaped.replace("\\040", " ")
        if folder.is_relative_to(point) and len(point) >= longest:
            options = {*own_options.split(","), *shared_options.split(",")}
            longest, found = len(point), (kind, frozenset(options), device)
    return found


def _has_journal(device: str) -> bool | None:
    """Whether the kernel lists a journal for this ext3 or ext4 device."""
    journals, block_device = Path("/proc/fs/jbd2"), Path("/sys/dev/block") / device
    if not journals.is_dir() or not block_device.exists():
        return None
    name = block_device.resolve().name
    return any(entry.name.rpartition("-")[0] == name for entry in journals.iterdir())


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.0f} MiB"
