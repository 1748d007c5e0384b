"""Save what can still be read from the damaged file of an embedded queue, as a new queue:

    python -m fuploader_dagster.resources.sources.embedded.salvage FOLDER

What must always hold: the damaged file is only read, and keeps its content under another name. The
new file gets the queue's name when it is complete. Rows keep their digests, so a row that changed
becomes a dead letter, as it would have before. All of them count as redelivered, because some may
be stored already.

How: rows are read in ranges of ids. A range with a page that SQLite cannot read is halved until the
unreadable ids are known.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.disk import sqlite_files
from fuploader_dagster.disk.durable import rename_durably
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import FuploaderError, SlotInUse, SourceRefused
from fuploader_dagster.resources.sources.embedded import database
from fuploader_dagster.resources.sources.embedded.source import CONSUMERS, EmbeddedQueue

_AT_ONCE = 500
_WAIT_SECONDS = 5.0
_MOST_DELIVERIES = 2**31


class Salvaged(NamedTuple):
    """The result of `salvage`."""

    saved: int
    unreadable: int
    """Ids whose row could not be read; some may never have had one, or lost it when settled."""
    damaged: Path
    """Where the damaged file is now."""


def salvage(folder: Path) -> Salvaged:
    """Replace a damaged file by a new one. Nobody may use the queue meanwhile.

    Raises `SlotInUse` if a consumer uses it, `SourceRefused` if nothing at all can be read.
    """
    settings = EmbeddedQueue(path=folder)
    path, new = folder / database.FILE, folder / f"{database.FILE}.salvaged"
    for lock in (folder / CONSUMERS).glob("*.lock"):
        with FileLock(lock):
            pass
    # Of an attempt that did not finish:
    sqlite_files.remove_database(new, wait_seconds=_WAIT_SECONDS)
    unreadable: list[int] = []
    try:
        with (
            closing(sqlite_files.open_to_read(path, wait_seconds=_WAIT_SECONDS)) as old,
            closing(
                sqlite_files.SqliteFile(new, database.prepare, wait_seconds=_WAIT_SECONDS)
            ) as file,
            file.transaction() as db,
        ):
            old.text_factory = bytes
            for rows in _readable(old, 1, _last_id(old), unreadable):
                db.executemany(
                    "INSERT OR IGNORE INTO messages "
                    "(id, body, deliveries, message_id, headers, digest) "
                    "VALUES (?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?)",
                    map(_as_delivered, rows),
                )
            (saved,) = db.execute("SELECT count(*) FROM messages").fetchone()
            db.execute("UPDATE waiting SET messages = ?", [saved])
    except sqlite_files.TROUBLE as error:
        raise database.explained(settings, error) from error
    damaged = _free_name(path)
    for ending in (*sqlite_files.LOGS, ""):
        here = path.with_name(path.name + ending)
        if here.exists():
            rename_durably(here, damaged.with_name(damaged.name + ending))
    rename_durably(new, path)
    new.with_name(f"{new.name}.lock").unlink(missing_ok=True)
    return Salvaged(saved, len(unreadable), damaged)


def _last_id(db: sqlite3.Connection) -> int:
    for statement in ("SELECT seq FROM sqlite_sequence", "SELECT max(id) FROM messages"):
        try:
            row = db.execute(statement).fetchone()
        except sqlite_files.TROUBLE:
            continue
        if row is not None and type(row[0]) is int:
            return int(row[0])
    raise SourceRefused(
        f"nothing in {database.FILE} can be read",
        hint="move it away: the next start makes an empty queue",
    )


def _readable(
    db: sqlite3.Connection, first: int, last: int, unreadable: list[int]
) -> Iterator[list[tuple[Any, ...]]]:
    ranges = [(first, last)]
    while ranges:
        first, last = ranges.pop()
        if first > last:
            continue
        try:
            rows = db.execute(database.READ_ROWS, (first, last, _AT_ONCE)).fetchall()
        except sqlite_files.TROUBLE:
            if first == last:
                unreadable.append(first)
                continue
            middle = (first + last) // 2
            ranges += [(middle + 1, last), (first, middle)]
            continue
        yield rows
        if len(rows) == _AT_ONCE and rows[-1][0] >= first:
            ranges.append((rows[-1][0] + 1, last))


def _as_delivered(row: tuple[Any, ...]) -> tuple[Any, ...]:
    number, body, deliveries, *others = row
    known = type(deliveries) is int and 0 <= deliveries < _MOST_DELIVERIES
    return (number, b"" if body is None else body, deliveries + 1 if known else 1, *others)


def _free_name(path: Path) -> Path:
    number = 1
    while (name := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.salvage", description=__doc__)
    parser.add_argument("folder", type=Path, help="the queue's folder, `path` in its settings")
    folder = parser.parse_args(arguments).folder
    try:
        done = salvage(folder)
    except (FuploaderError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 3 if isinstance(error, SlotInUse) else 4
    sys.stdout.write(
        f"{counted(done.saved, 'message is', 'messages are')} in the new queue; "
        f"{counted(done.unreadable, 'row')} could not be "
        f"read. The damaged file is now {done.damaged}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
