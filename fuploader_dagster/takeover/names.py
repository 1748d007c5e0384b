"""Names of FUploader's files as text: a disk takes any bytes, an archive and an index do not.

What must always hold: each file gets a name that is valid UTF-8, that the disk takes, and that no
other file has; a name that is valid already is kept. So if a take-over dies between renaming a file
and indexing it, the next one finds a valid name and continues.

A byte that is not UTF-8 becomes `\\xff`. If that name is too long or taken, it is shortened and
starts with the first digits of the SHA-256 of the old name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from fuploader_dagster.disk.durable import make_dirs, rename_durably
from fuploader_dagster.disk.temporaries import MAX_NAME_BYTES


def as_text(name: str) -> str:
    """The name as valid text, with `\\xff` for a byte that is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def names_in(folder: Path) -> Iterator[str]:
    """Relative names of all files, sorted; renames those that are not UTF-8."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        valid = as_text(name)
        if valid != name:
            if not _is_free(folder, valid):
                valid = _hashed(name)
            make_dirs((folder / valid).parent)
            rename_durably(path, folder / valid)
        yield valid


def _is_free(folder: Path, name: str) -> bool:
    """Whether a file of this name can be created."""
    if any(len(part.encode("utf-8")) > MAX_NAME_BYTES for part in name.split("/")):
        return False
    above = [folder / one for one in Path(name).parents]
    return not (folder / name).exists() and all(one.is_dir() or not one.exists() for one in above)


def _hashed(name: str) -> str:
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    last = as_text(name.rpartition("/")[2])
    return f"{digest}-{last}".encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore")
