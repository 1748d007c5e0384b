"""Modes of our own files and folders: only their owner can read messages on the disk.

What must always hold: what we make has mode 0600 or 0700, whatever the umask allows. Exceptions are
what existed before, and what others are to read: objects of a local store, restored and exported
files, and what a packer is given.

The set-group-ID bit on a folder says that its group shares the content: below it, the group gets
the rights that it has on the folder, as far as the umask allows.
"""

from __future__ import annotations

import stat
from pathlib import Path


def file_mode(folder: Path) -> int:
    """For a new file of ours in the folder."""
    return 0o600 | _of_group(folder) & 0o060


def folder_mode(parent: Path) -> int:
    """For a new folder of ours."""
    return 0o700 | _of_group(parent)


def _of_group(folder: Path) -> int:
    mode = folder.stat().st_mode
    return mode & stat.S_IRWXG if mode & stat.S_ISGID else 0
