"""The identity of a pipeline's folder, in whose name the state store claims slots.

What must always hold: a folder has one identity at a time, made once and kept in `root-id`: 32 hex
digits. A file that holds something else is moved to set-aside/ and logged, and the folder gets a
new identity; claims of the old one expire by themselves.
"""

from __future__ import annotations

import logging
import re
import uuid

from fuploader_dagster.disk.durable import create_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock, waited_for
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.disk.trouble import naming_disk_trouble

log = logging.getLogger(__name__)

_ID = re.compile(rb"[0-9a-f]{32}\s*")


def root_id(layout: Layout) -> str:
    """The identity of the folder; made if there is none."""
    found = _read(layout)
    if found:
        return found
    # Without the lock, two workers could each move away the file that the other has just made.
    with waited_for(FileLock(layout.locks / "root-id.lock")):
        if layout.root_id.exists() and not _read(layout):
            target = set_aside(layout.root_id, layout)
            log.error(
                "%s was damaged, and was moved to %s. The folder gets a new identity; its workers "
                "wait until the claims of the old one expire",
                layout.root_id,
                target,
            )
        create_durably(layout.root_id, uuid.uuid4().hex.encode())
        return _read(layout)


def _read(layout: Layout) -> str:
    """The identity in the file; empty if there is none, or it is damaged."""
    with naming_disk_trouble(layout.root_id):
        try:
            content = read_own(layout.root_id)
        except FileNotFoundError:
            return ""
    return content.decode().strip() if _ID.fullmatch(content) else ""
