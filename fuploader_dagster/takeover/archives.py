"""FUploader's archives: whether one is whole, and which files it holds.

What must always hold: only what was read to its end, or what its format proves, counts as whole;
and no member is written under a name that leads elsewhere.

FUploader packs a directory into a `.tar.zst` in which every name begins with the directory's. A
user's own packer may have made another format, whose members cannot be read here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from fuploader_dagster.archives.foreign import ForeignArchive, is_complete, refuse_foreign
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.ranges import LocalFile, RangeSource
from fuploader_dagster.archives.restore_folder import Refused, RestoreFolder, safe_parts
from fuploader_dagster.archives.tar_scan import scan
from fuploader_dagster.errors import DamagedArchive, DamagedSlot
from fuploader_dagster.takeover.plan import ArchiveState, Member

_MAX_PATH_BYTES = 4096
"""Linux opens no longer path."""


def read_archive(path: Path) -> tuple[ArchiveState, tuple[Member, ...], bool]:
    """State, files, and whether it holds anything else (`read_members`)."""
    with closing(LocalFile(path)) as source:
        try:
            refuse_foreign(source)
            return "whole", *read_members(source)
        except DamagedArchive:
            return "torn", (), False
        except ForeignArchive:
            complete = is_complete(path)
    if complete is None:
        return "unknown", (), False
    return "foreign" if complete else "torn", (), False


def read_members(source: RangeSource) -> tuple[tuple[Member, ...], bool]:
    """The files, and whether there is anything else except directories, or a file whose name fits
    no folder: such an archive is only ever taken as it is.

    Raises `DamagedArchive` if the archive is incomplete or damaged.
    """
    members = []
    others = False
    for item in scan(source):
        if isinstance(item, Damage):
            raise DamagedArchive(str(item))
        digest = hashlib.sha256()
        for chunk in item.chunks():
            digest.update(chunk)
        name = _without_directory(item.name)
        if item.kind == "file" and _fits_a_folder(name):
            members.append((name, digest.digest(), item.size_bytes))
        else:
            others |= item.kind != "directory"
    return tuple(members), others


def write_members(path: Path, names: Collection[str], folder: Path) -> list[str]:
    """Write these members of an archive into a folder; returns a sentence for each that was
    refused."""
    refused = []
    with closing(LocalFile(path)) as source, RestoreFolder(folder) as target:
        for item in scan(source):
            if isinstance(item, Damage):
                raise DamagedSlot(f"{path} changed while it was being read: {item}")
            name = _without_directory(item.name)
            if item.kind != "file" or name not in names:
                continue
            try:
                target.write(name, item.chunks())
            except Refused as error:
                refused.append(error.message)
    return refused


def _without_directory(name: str) -> str:
    """The name of a member without the directory that was packed."""
    return name.partition("/")[2] or name


def _fits_a_folder(name: str) -> bool:
    """Whether a member can become a file of that name. FUploader never made one that leads
    elsewhere or that no disk takes."""
    try:
        parts = safe_parts(name)
    except Refused:
        return False
    return bool(parts) and len(os.fsencode(name)) < _MAX_PATH_BYTES
