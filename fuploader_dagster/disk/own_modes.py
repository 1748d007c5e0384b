"""Modes of our own files and folders: nobody but their owner reads messages on the disk.

What must always hold: what we make has mode 0600 or 0700, whatever the umask of whoever started us
allows. What is there already keeps its mode, and so does what is made to be read by others: objects
of a local store, restored and exported files, and what a packer is given.

A folder with the set-group-ID bit says that its group is to share what is in it: below it the group
gets what it has on the folder, as far as the umask allows.
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
