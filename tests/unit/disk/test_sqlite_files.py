"""All SQLite files are opened in one way: new or not, in use or not, by whoever may."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fuploader_dagster.catalog.catalog import Catalog, CatalogedArchive
from fuploader_dagster.disk.sqlite_files import SqliteFile, open_to_read, remove_database, trouble
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.states.sqlite import SqliteState
from tests.sqlite_races import Use, assert_waits_for_another_program, together

ROUNDS = 25


def use_embedded(path: Path, number: int) -> None:
    publisher = EmbeddedQueue(path=path.parent).publisher()
    try:
        publisher.publish([(b"%d" % number, {})])
    finally:
        publisher.close()


def use_catalog(path: Path, number: int) -> None:
    one = CatalogedArchive(str(number), "", "", "", 1, 1, None)
    with Catalog(path) as catalog:
        catalog.add(one, ["x"])


def use_state(path: Path, number: int) -> None:
    store = SqliteState(path=path).store(pipeline="p", node="n")
    try:
        store.add_sealed([str(number)])
    finally:
        store.close()


USERS: dict[str, tuple[str, Use]] = {
    "catalog": ("catalog.sqlite", use_catalog),
    "state": ("state.sqlite", use_state),
    "embedded queue": ("queue.sqlite", use_embedded),
}
"""For each: its file, and opening, writing and closing it."""


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Use]:
    name, use = USERS[request.param]
    return tmp_path / "folder" / name, use


def test_processes_that_open_a_new_file_at_the_same_moment_all_can(user: tuple[Path, Use]) -> None:
    path, use = user
    folder = path.parent
    assert together(use, lambda turn: folder / str(turn) / path.name, ROUNDS) == []


def test_processes_that_open_write_and_close_one_file_all_the_time_all_can(
    user: tuple[Path, Use],
) -> None:
    path, use = user
    assert together(use, lambda _: path, 4 * ROUNDS) == []


def test_opening_a_new_file_waits_for_a_program_that_is_writing_it(
    user: tuple[Path, Use],
) -> None:
    """SQLite alone refuses the switch to the write-ahead log at once, whatever the timeout."""
    path, use = user
    assert_waits_for_another_program(use, path)


def tables(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS t (x)")


def test_waiting_ends(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            SqliteFile(path, tables, wait_seconds=0.2)
    assert trouble(caught.value) == "busy"
    file = SqliteFile(path, tables, wait_seconds=0.2)  # and the lock was given back
    file.close()
    file.close()


def test_an_open_file_that_was_removed_or_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = SqliteFile(path, tables, wait_seconds=1)
    assert file.in_place
    remove_database(path, wait_seconds=1)
    assert not file.in_place
    other = SqliteFile(path, tables, wait_seconds=1)
    assert other.in_place
    assert not file.in_place
    file.close()
    other.close()


def test_a_transaction_that_fails_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "f", tables, wait_seconds=1)
    with pytest.raises(KeyError), file.transaction() as db:
        db.execute("INSERT INTO t VALUES (1)")
        raise KeyError
    with pytest.raises(sqlite3.DatabaseError, match="foreign"), file.transaction() as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute("INSERT INTO t VALUES (1)")
        raise sqlite3.IntegrityError("foreign")
    with file.transaction() as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
    file.close()


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """What a process reads in a file that may write nothing; it was there before the file was open
    here, because a fork would inherit what SQLite knows of it.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_read_as_nobody, args=(theirs,))
    process.start()

    def read(path: Path, mode_of_folder: int = 0o555) -> str:
        modes = {folder: folder.stat().st_mode for folder in (tmp_path, *tmp_path.parents)}
        for folder, mode in modes.items():
            if folder.stat().st_uid == os.getuid():
                folder.chmod(mode | 0o055)
        for file in path.parent.iterdir():
            file.chmod(0o644)
        path.parent.chmod(mode_of_folder)
        ours.send(path)
        said = ours.recv()
        path.parent.chmod(0o755)
        return str(said)

    yield read
    ours.send(None)
    process.join()


def _read_as_nobody(pipe: Connection) -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    while (path := pipe.recv()) is not None:
        try:
            with closing(open_to_read(path, wait_seconds=1)) as db:
                pipe.send(db.execute("SELECT x FROM t").fetchone()[0])
        except (sqlite3.Error, OSError) as error:
            pipe.send(trouble(error))


@pytest.mark.parametrize("left", ["", "an empty log", "open elsewhere"])
def test_a_user_without_the_right_to_write_can_read(
    tmp_path: Path, nobody: Callable[..., str], left: str
) -> None:
    path = tmp_path / "folder" / "f?#%.sqlite"
    file = SqliteFile(path, tables, wait_seconds=1)
    file.connection.execute("INSERT INTO t VALUES (7)")
    if left != "open elsewhere":
        file.close()
    if left == "an empty log":
        path.with_name(f"{path.name}-wal").touch()
    assert nobody(path) == "7"
    file.close()


def test_reading_leaves_nothing_that_the_owner_cannot_write(
    tmp_path: Path, nobody: Callable[..., str]
) -> None:
    """The folder is everybody's, the file is not."""
    path = tmp_path / "folder" / "f"
    file = SqliteFile(path, tables, wait_seconds=1)
    file.connection.execute("INSERT INTO t VALUES (7)")
    file.close()
    assert nobody(path, 0o777) == "7"
    assert {left.name for left in path.parent.iterdir()} == {"f", "f.lock"}


def test_a_log_that_cannot_be_read_without_writing_is_reported(
    tmp_path: Path, nobody: Callable[..., str]
) -> None:
    path = tmp_path / "folder" / "f"
    file = SqliteFile(path, tables, wait_seconds=1)
    file.connection.execute("INSERT INTO t VALUES (7)")
    path.with_name("f-shm").unlink()
    assert nobody(path) == "rights"
    file.close()
