"""Where a storage root is: on which machine, in which folder. No two copies of it share that.

What must always hold: two processes that see the same place see the same files of one kernel, so a
file lock of one keeps out the other. Anything that a copy takes along does not count:
/etc/machine-id is copied with images and is the same in all containers of one. A kernel draws its
boot id when it starts, and containers share that of their machine; the host name tells apart what
was started from one snapshot of a running machine and renamed; the folder's disk and inode tell
apart two copies on one machine. The path is there for people.

So a place changes with each boot, with a container's new host name, and when the folder is moved.
A claim of the place before then has to expire; that is all.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.trouble import naming_disk_trouble

MACHINE_VARIABLE = "FUPLOADER_MACHINE"
"""Environment variable: a name that is added to this machine's, where neither its boot id nor its
host name tells it apart (some sandboxes hide both)."""
_MOST_OF_A_NAME = 100
_MOST_OF_A_PATH = 200
_BOOT_DIGITS = 13
"""Of the 36 that a kernel draws: enough to tell machines apart, and people read them."""


@lru_cache(maxsize=1)
def machine() -> str:
    """This machine since its last boot, in words."""
    return f"{_name()} (boot {_boot_id() or 'unknown'})"


def is_this_machine(told: str) -> bool:
    """Whether `machine()` said this here, now or before the last boot."""
    return told == machine() or told.startswith(f"{_name()} (boot ")


def _name() -> str:
    names = [socket.gethostname(), os.environ.get(MACHINE_VARIABLE, "")]
    found = "/".join(filter(None, (_one_line(name, _MOST_OF_A_NAME) for name in names)))
    return found or "a machine without a name"


def place_of(layout: Layout) -> str:
    """Where the folder is. Raises `DiskFailed` if it cannot be looked at."""
    with naming_disk_trouble(layout.root):
        found = layout.root.stat()
    disk = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    path = _one_line(os.path.realpath(layout.root), _MOST_OF_A_PATH)
    return f"{machine()}, {path} (disk {disk}, folder {found.st_ino})"


def running_seconds() -> float:
    """A clock that never goes back, and also runs while this machine sleeps where that is known."""
    with suppress(AttributeError):  # no Linux
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _boot_id() -> str:
    with suppress(OSError, ValueError):  # no Linux, or a sandbox that hides it
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()[:_BOOT_DIGITS]
    return ""


def _one_line(text: str, most: int) -> str:
    return "".join(character for character in text.strip() if character.isprintable())[:most]
