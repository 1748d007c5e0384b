"""Small file systems for tests that fill them, and one that loses what it was given: real mounts.

They need the right to mount (root, or CAP_SYS_ADMIN in a container). Where that is missing the
tests fail and say so: nothing else can show what a full disk does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.process import binary

MIB = 1024 * 1024
PAGE_BYTES = 4096
BALLAST = "ballast"


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[None]:
    """`mount ARGUMENTS PLACE`, unmounted after the block (lazily: a worker may just be leaving)."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        [binary("mount", package="mount"), *arguments, str(place)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (
        f"could not mount a small file system: {done.stderr.strip()} (these tests fill real disks: "
        f"run them as root, in a container with --privileged)"
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def small_disk(place: Path, *, size_bytes: int, inodes: int = 10_000) -> Iterator[Path]:
    """A tmpfs of this size."""
    limits = f"size={size_bytes},nr_inodes={inodes}"
    with mounted(place, "-t", "tmpfs", "-o", limits, "fuploader-test"):
        yield place


def enlarge(place: Path, *, size_bytes: int) -> None:
    """Give a small disk more space."""
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(place)], check=True)


def free_bytes(place: Path) -> int:
    stat = os.statvfs(place)
    return stat.f_bavail * stat.f_frsize


def fill(place: Path, *, leave_bytes: int = 0) -> None:
    """Take all space but this much; give some back if less is free."""
    with (place / BALLAST).open("ab") as file:
        size = file.tell() + free_bytes(place) - leave_bytes
        file.truncate(size)
        os.posix_fallocate(file.fileno(), 0, size)


def make_room(place: Path) -> None:
    """Give back what `fill` took."""
    (place / BALLAST).unlink()


class ThinDisk:
    """A file system on a disk that has promised more than it has: a sparse image on a tmpfs.

    Once it is `starved` a block that was never written finds no place, and the sync that wrote it
    fails. The page stays in memory and counts as clean, as with any disk that fails to write: the
    next sync succeeds without it. What is really there shows only when it is mounted again.
    """

    def __init__(self, folder: Path) -> None:
        self._below = folder / "below"
        self._root = folder / "disk"

    def make(self) -> None:
        image = self._below / "image"
        image.touch()
        os.truncate(image, 64 * MIB)
        subprocess.run(
            [
                binary("mkfs.ext2", "/sbin/mkfs.ext2", package="e2fsprogs"),
                *("-q", "-F", "-b", str(PAGE_BYTES), "-E", "nodiscard", str(image)),
            ],
            check=True,
        )

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        with mounted(self._root, "-o", "loop", str(self._below / "image")):
            yield self._root

    def starve(self, *, leave_bytes: int) -> None:
        """From now on only so many new bytes find a place."""
        subprocess.run(["sync", "--file-system", str(self._root)], check=True)
        fill(self._below, leave_bytes=leave_bytes)
        assert free_bytes(self._below) == leave_bytes

    def mend(self) -> None:
        make_room(self._below)


@contextmanager
def thin_disk(folder: Path) -> Iterator[ThinDisk]:
    """A `ThinDisk` below the folder, not mounted yet."""
    disk = ThinDisk(folder)
    with small_disk(folder / "below", size_bytes=48 * MIB):
        disk.make()
        yield disk
