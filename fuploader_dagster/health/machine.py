"""The machine a pipeline stands on: what its disk and its limits are, and what that means.

`read_disk` and `open_files_limit` look, everything else decides from the values.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.disk import durable
from fuploader_dagster.disk.temporaries import temporary_name
from fuploader_dagster.settings.pipeline import Intake

IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
OVER_THE_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs", "lustre"}
WITHOUT_FSYNC_OPTIONS = {"nobarrier", "barrier=0"}
PROBES = 5
PROBE_BYTES = 64 * 1024
SLOW_FSYNC_SECONDS = 0.05
OPEN_FILES_OF_A_PROCESS = 256
"""Libraries, database, broker and store connections of one process, with room to spare."""
OPEN_FILES_PER_SLOT = 4


@dataclass(frozen=True)
class Disk:
    """A folder's file system, as the kernel describes it."""

    folder: Path
    kind: str
    """`ext4`, `xfs`, ...; empty where the kernel does not say."""
    options: frozenset[str]
    journal: bool | None
    """None where it cannot be told, or where the kind of file system needs none."""
    free_bytes: int
    free_inodes: int | None
    """None for file systems that do not count them."""
    fsync_seconds: float
    """Median of some small durable writes."""


def read_disk(folder: Path) -> Disk:
    """Write a few small files durably into the folder, remove them, ask the kernel for the rest.

    The folder is created if it is missing, as the first worker would. Raises `OSError` or
    `DiskFull` if that cannot be done.
    """
    durable.make_dirs(folder)
    kind, options, device = _mount_of(folder.resolve())
    space = os.statvfs(folder)
    return Disk(
        folder,
        kind,
        options,
        _has_journal(device) if kind in ("ext3", "ext4") else None,
        space.f_bavail * space.f_frsize,
        space.f_favail if space.f_files else None,
        _seconds_to_write(folder),
    )


def judge_disk(disk: Disk, pipeline: Intake) -> Iterator[Diagnosis]:
    """What the disk means for a pipeline, each point on its own."""
    yield _free_space(disk, pipeline)
    yield _inodes(disk, pipeline)
    yield _file_system(disk)
    yield _fsync(disk)


def judge_open_files(limit: int, pipeline: Intake) -> Diagnosis:
    """Whether a worker and a run have enough file descriptors. `limit` is the soft one."""
    needed = OPEN_FILES_OF_A_PROCESS + OPEN_FILES_PER_SLOT * pipeline.slots_per_worker
    found = f"a process may open {limit:,} files, a worker may need {needed:,}"
    if limit < needed:
        return Diagnosis(
            "open files", "wrong", found, "raise it: `ulimit -n`, or LimitNOFILE in systemd's unit"
        )
    return Diagnosis("open files", "good", found)


def open_files_limit() -> int:
    """The soft limit of this process; its children inherit it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def _free_space(disk: Disk, pipeline: Intake) -> Diagnosis:
    slots = pipeline.process_count * pipeline.slots_per_worker
    growing = slots * pipeline.seal_bytes * 2  # while it is packed a slot is there twice
    found = (
        f"{_mib(disk.free_bytes)} free in {disk.folder}; the drain pauses below "
        f"{_mib(pipeline.min_free_bytes)}, full slots take up to {_mib(growing)}"
    )
    if disk.free_bytes < pipeline.min_free_bytes:
        return Diagnosis("disk space", "wrong", found, "free some space, or lower min_free_bytes")
    if disk.free_bytes < pipeline.min_free_bytes + growing:
        return Diagnosis(
            "disk space",
            "warning",
            found,
            "the drain will pause while slots wait for their upload: free some space, or lower "
            "seal_bytes",
        )
    return Diagnosis("disk space", "good", found)


def _inodes(disk: Disk, pipeline: Intake) -> Diagnosis:
    if disk.free_inodes is None:
        return Diagnosis("inodes", "good", f"{disk.kind or 'the file system'} does not count them")
    slots = pipeline.process_count * pipeline.slots_per_worker
    files = pipeline.seal_messages if pipeline.slot_format == "files" else 8
    needed = 2 * slots * files + pipeline.min_free_inodes
    found = f"{disk.free_inodes:,} free, min_free_inodes and full slots take {needed:,}"
    if disk.free_inodes < needed:
        return Diagnosis(
            "inodes",
            "wrong",
            found,
            "remove small files, lower seal_messages, or use slot_format: segment",
        )
    return Diagnosis("inodes", "good", found)


def _file_system(disk: Disk) -> Diagnosis:
    what = f"{disk.folder} lies on {disk.kind or 'a file system of unknown kind'}"
    if disk.kind in IN_MEMORY:
        return Diagnosis(
            "file system",
            "wrong",
            f"{what}: it is gone when the machine stops, with every message acknowledged",
            "set storage_root to a folder on a disk",
        )
    if unsafe := sorted(disk.options & WITHOUT_FSYNC_OPTIONS):
        return Diagnosis(
            "file system",
            "wrong",
            f"{what}, mounted with {', '.join(unsafe)}: a power cut can undo what was synced",
            "mount it without these options",
        )
    if disk.kind in OVER_THE_NETWORK or disk.kind.startswith("fuse"):
        return Diagnosis(
            "file system",
            "warning",
            f"{what}: what fsync and locks promise is up to its server",
            "prefer a local disk for storage_root; slots leave it within minutes anyway",
        )
    if disk.kind == "overlay":
        return Diagnosis(
            "file system",
            "warning",
            f"{what}: in a container it goes with the container",
            "mount a volume of the host at storage_root",
        )
    if disk.journal is False:
        return Diagnosis(
            "file system",
            "warning",
            f"{what} without a journal: a crash needs a long check, and directories may suffer",
            "use a journal (`tune2fs -O has_journal` on the unmounted device)",
        )
    return Diagnosis("file system", "good", what + (" with a journal" if disk.journal else ""))


def _fsync(disk: Disk) -> Diagnosis:
    milliseconds = disk.fsync_seconds * 1000
    found = f"a small durable write takes {milliseconds:.1f} ms"
    if disk.fsync_seconds > SLOW_FSYNC_SECONDS:
        return Diagnosis(
            "fsync",
            "warning",
            found,
            "each commit waits for one: raise commit_messages and prefetch_count, or take "
            "another disk",
        )
    return Diagnosis("fsync", "good", found)


def _seconds_to_write(folder: Path) -> float:
    probe = temporary_name(folder / "doctor")  # which recovery removes, should this be killed
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
    """Kind, options and device number of the mount that a folder lies on."""
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
