"""The catalog: which archive holds the file with this name?

What must always hold:

- The object store is the truth; the catalog only knows where to look. It can be lost at any time,
  and rebuilt from the archives' manifests (`rebuild`). Nothing waits for it or fails because of it.
- An archive is in it with all its names, or not at all. Adding it again changes nothing.
- Whatever a damaged, locked or forbidden file raises becomes a `CatalogUnusable` that says what to
  do.

Format: `catalog.sqlite` in the pipeline's folder, SQLite with a write-ahead log; `user_version` is
the format's version, 3.

    archives   one row per archive: address, key, partition, sealed_at, members, size, digest
    names      FTS5: one document per archive (its rowid is the archive's id), whose words are the
               names; columns, positions and contents are not stored, only word -> archives
    vocabulary the words of `names` in order, for exact names and prefixes
    lists      for each archive, its names as one compressed list (`name_lists`), for other patterns
    grams      for each archive, bits that say whether its list needs no search (`name_grams`);
               `place` is row * 2**40 + archive, so that one row of all archives is contiguous

Names use an inverted index because they come in random order: a B-tree rewrites a page for each
name, while FTS5 appends a sorted run per archive and merges runs little by little (measured with
ten million names: a tenth of the time, two thirds of the size; docs/decisions/0006-the-catalog.md).
The words of a removed archive stay until a rebuild, but lead to no archive.

A name becomes a word by escaping what FTS5 would change or split at: capitals, quotes, white space
and control characters (`_escape`). A prefix of a name is a prefix of its word.
"""

from __future__ import annotations

import re
import sqlite3
import string
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from fuploader_dagster.catalog.name_grams import ROWS, Gram, gram_rows, grams_of
from fuploader_dagster.catalog.name_lists import NamePattern, join_names, pack_names
from fuploader_dagster.disk.sqlite_files import TROUBLE, SqliteFile, open_to_read, trouble
from fuploader_dagster.errors import PermanentError
from fuploader_dagster.slots.numbered_names import is_numbered_member, numbered_name

FORMAT_VERSION = 3
WAIT_SECONDS = 30.0
"""Time to wait for another upload's transaction, which takes some 30 ms for 10,000 names."""
_UNUSABLE = (
    *TROUBLE,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    zstandard.ZstdError,
)
"""Also what rows of a damaged file raise: with other types, other counts, or cut short."""
_TO_DO = {
    "busy": "another process has held it for a long time: try again",
    "rights": "run it as the user who owns the file and its folder",
    "disk": "check the disk and its space; fuploader catalog rebuild adds what is missing",
    "damaged": "if it is damaged: fuploader catalog rebuild --anew",
}
_IN_ORDER = 10_000
"""If more names than this start like the pattern, searching the lists is faster."""
_MOST_GRAMS = 16
"""Grams of a pattern to look up, or up to twice as many if they do not divide evenly."""
_FEW_ARCHIVES = 4
"""This many lists are searched in less time than one gram is looked up."""
_ARCHIVE_BITS = 40

_WORD_CHARACTERS = "".join(c for c in string.punctuation if c not in "'\"")
_SCHEMA = f"""
create table archives (
    id integer primary key autoincrement, address text not null unique, key text not null,
    partition text not null, sealed_at text not null, members integer not null,
    size_bytes integer not null, sha256 text);
create virtual table names using fts5 (
    name, content='', columnsize=0, detail=none,
    tokenize="ascii tokenchars '{_WORD_CHARACTERS}'");
create virtual table vocabulary using fts5vocab (names, instance);
create table lists (archive integer primary key, names blob not null);
create table grams (place integer primary key, bits blob not null);
pragma user_version = {FORMAT_VERSION};
"""


class CatalogUnusable(PermanentError):
    """The catalog cannot be read or written. Archives and uploads do not need it.

    `busy`: another process holds it, so it may be usable soon.
    """

    def __init__(self, message: str, *, hint: str = "", busy: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.busy = busy


class CatalogedArchive(NamedTuple):
    """An archive as the catalog knows it."""

    address: str
    key: str
    partition: str
    """Empty if the archive's name does not tell."""
    sealed_at: str
    """UTC, ISO 8601; empty if there is no partition."""
    members: int
    size_bytes: int
    sha256: str | None


class Hit(NamedTuple):
    """A file with this name is in this archive."""

    name: str
    archive: CatalogedArchive


class Catalog:
    """An open catalog. Used by one thread; many processes may have it open. A context manager."""

    def __init__(self, path: Path, *, wait_seconds: float = WAIT_SECONDS) -> None:
        """Open the catalog; make it if it is missing. Raises `CatalogUnusable`.

        Waits at most about `wait_seconds` for other processes, here and at each write.
        """
        self._path = path
        self._file: SqliteFile | None = None
        with self._explained():
            self._file = SqliteFile(path, _prepare, wait_seconds=wait_seconds)
            self._db = self._file.connection
        self._check_version()

    @classmethod
    def to_read(cls, path: Path) -> Catalog:
        """The catalog for a user who may only read it. Raises `CatalogUnusable`."""
        catalog = cls.__new__(cls)
        catalog._path, catalog._file = path, None
        with catalog._explained():
            catalog._db = open_to_read(path, wait_seconds=WAIT_SECONDS)
        catalog._check_version()
        return catalog

    def _check_version(self) -> None:
        try:
            with self._explained():
                version = _version(self._db)
            if version != FORMAT_VERSION:
                raise CatalogUnusable(
                    f"{self._path} has format version {version}, this program knows "
                    f"{FORMAT_VERSION}",
                    hint="make a new one: fuploader catalog rebuild --anew",
                )
        except CatalogUnusable:
            self.close()
            raise

    def close(self) -> None:
        """Never raises, may be repeated."""
        with suppress(sqlite3.Error):  # from a damaged file; there is nothing left to do
            self._db.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, archive: CatalogedArchive, names: Iterable[str]) -> bool:
        """Add an archive with the names of its members; False if it is already there.

        Replaces another archive with the same address.
        """
        names = list(names)
        with self._explained():
            words, joined = "\n".join(map(_word, names)), join_names(names)
            packed, rows = pack_names(joined), gram_rows(joined)
            with self._transaction():
                known = self._db.execute(
                    "select size_bytes, sha256 from archives where address = ?", [archive.address]
                ).fetchone()
                if known == (archive.size_bytes, archive.sha256):
                    return False
                self._remove(archive.address)
                added = self._db.execute(
                    "insert into archives (address, key, partition, sealed_at, members, "
                    "size_bytes, sha256) values (?, ?, ?, ?, ?, ?, ?)",
                    archive,
                )
                number = added.lastrowid or 0
                self._db.execute("insert into names (rowid, name) values (?, ?)", [number, words])
                self._db.execute("insert into lists values (?, ?)", [number, packed])
                self._db.executemany(
                    "insert into grams values (?, ?)",
                    [(_place(row, number), bits) for row, bits in enumerate(rows)],
                )
        return True

    def forget(self, address: str) -> None:
        """Remove an archive that is gone from the store. A missing one is no error."""
        with self._explained(), self._transaction():
            self._remove(address)

    def _remove(self, address: str) -> None:
        known = self._db.execute("select id from archives where address = ?", [address]).fetchone()
        if known is None:
            return
        self._db.executemany(
            "delete from grams where place = ?", [(_place(row, known[0]),) for row in range(ROWS)]
        )
        self._db.execute("delete from lists where archive = ?", known)
        self._db.execute("delete from archives where id = ?", known)

    def archives(self) -> dict[str, CatalogedArchive]:
        """All archives, by their address."""
        with self._explained():
            rows = self._db.execute("select * from archives").fetchall()
            return {row[1]: _archive_of(row) for row in rows}

    def find(self, wanted: str) -> Iterator[Hit]:
        """Files with this name and, if it contains `*`, `?` or `[...]`, all that match it.

        Files with exactly this name come first. The others come in the order of their words if few
        names start like the pattern; otherwise archive by archive, oldest first, from the lists of
        those that may hold a match. Files with the same name come oldest archive first.
        """
        with self._explained():
            yield from self._exactly(wanted)
            wildcard = re.search(r"[*?[]", wanted)
            if wildcard is None:
                return
            start, pattern = wanted[: wildcard.start()], NamePattern(wanted)
            every = wanted == f"{start}*"  # all names that start like it match, however many
            if start and (every or not self._many_begin(start)):
                yield from self._hits(
                    (name, document)
                    for name, document in self._beginning(start)
                    if pattern.fits(name) and name != wanted
                )
            else:
                yield from self._in_lists(pattern, wanted)

    def find_message(self, name: str) -> Iterator[Hit]:
        """Files with exactly this name, and those of its numbered names (`a~2.json`): other
        messages that were called like it. Of very many numbers, and of the high ones of a name
        that nearly fills a directory entry, not all are found.
        """
        with self._explained():
            yield from self._exactly(name)
            if not _is_utf8(name):
                return  # no number is ever given to such a name
            folder, slash, last = name.rpartition("/")
            start = f"{folder}{slash}{numbered_name(last, 2).rpartition('~')[0]}~"
            numbered = (
                (found, document)
                for found, document in islice(self._beginning(start), _IN_ORDER)
                if is_numbered_member(found, name)
            )
            yield from self._hits(numbered)

    def _exactly(self, name: str) -> Iterator[Hit]:
        found = self._db.execute("select doc from vocabulary where term = ?", [_word(name)])
        return self._hits((name, document) for (document,) in found)

    def _in_lists(self, pattern: NamePattern, wanted: str) -> Iterator[Hit]:
        for number in self._may_hold(grams_of(pattern.literals)):
            row = self._db.execute("select names from lists where archive = ?", [number]).fetchone()
            found = [name for name in pattern.find_in(row[0]) if name != wanted] if row else []
            archive = self._archive(number) if found else None
            if archive is not None:
                yield from (Hit(name, archive) for name in found)

    def _may_hold(self, grams: Sequence[Gram]) -> Sequence[int]:
        """The archives that may hold names with these grams, oldest first."""
        ordered = self._db.execute("select id from archives order by sealed_at, address")
        numbers = [number for (number,) in ordered]
        step = max(1, len(grams) // _MOST_GRAMS)  # neighbouring grams say nearly the same
        for gram in grams[::step]:
            if len(numbers) <= _FEW_ARCHIVES:
                break
            places = [_place(gram.row, 0), _place(gram.row + 1, 0)]
            found = self._db.execute(
                "select place, bits from grams where place >= ? and place < ?", places
            )
            without = {place - places[0] for place, bits in found if not gram.may_be_in(bits)}
            numbers = [number for number in numbers if number not in without]
        return numbers

    def _many_begin(self, start: str) -> bool:
        return any(True for _ in islice(self._beginning(start), _IN_ORDER, None))

    def _beginning(self, start: str) -> Iterator[tuple[str, int]]:
        word = _word(start)
        rows = self._db.execute("select term, doc from vocabulary where term >= ?", [word])
        for term, document in rows:
            if not term.startswith(word):
                break
            yield _name(term), document

    def _hits(self, words: Iterable[tuple[str, int]]) -> Iterator[Hit]:
        for name, found in groupby(words, key=lambda one: one[0]):
            there = filter(None, (self._archive(document) for _, document in found))
            for archive in sorted(there, key=lambda one: (one.sealed_at, one.address)):
                yield Hit(name, archive)

    def _archive(self, number: int) -> CatalogedArchive | None:
        row = self._db.execute("select * from archives where id = ?", [number]).fetchone()
        return _archive_of(row) if row else None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._file is None:
            raise CatalogUnusable(f"{self._path} was opened only to read")
        if not self._file.in_place:
            raise CatalogUnusable(
                f"{self._path} was removed or replaced while it was in use", hint="try again"
            )
        with self._file.transaction():
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _UNUSABLE as error:
            kind = trouble(error)
            raise CatalogUnusable(
                f"the catalog {self._path} cannot be used: {error or type(error).__name__}",
                hint=_TO_DO[kind],
                busy=kind == "busy",
            ) from error


def _prepare(db: sqlite3.Connection) -> None:
    # A power cut may lose the newest archives' entries, never the file; no fsync per archive.
    db.execute("pragma synchronous = normal")
    if _version(db) == 0:
        db.execute("begin immediate")
        for statement in _SCHEMA.split(";\n"):
            db.execute(statement)
        db.execute("commit")


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("pragma user_version").fetchone()
    return int(version)


def _archive_of(row: tuple[Any, ...]) -> CatalogedArchive:
    """Raises `TypeError` for a damaged row whose columns have other types."""
    archive = CatalogedArchive(*row[1:])
    texts = (*archive[:4], archive.sha256 or "")
    if not all(type(text) is str for text in texts) or type(archive.size_bytes) is not int:
        raise TypeError("a row of archives has columns of other types")
    return archive


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _place(row: int, archive: int) -> int:
    return (row << _ARCHIVE_BITS) + archive


_CHANGED = re.compile("[A-Z^'\" \x00-\x1f\x7f\ud800-\udfff]")
_ESCAPED = re.compile(r"\^(?:([a-z])|2([0-9a-f]{2})|4([0-9a-f]{4}))")


def _word(name: str) -> str:
    """The name as FTS5 stores it: what it would change or split at is escaped."""
    return _CHANGED.sub(_escape, name)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character.isalpha() and character.isascii():
        return f"^{character.lower()}"
    return f"^2{ord(character):02x}" if ord(character) < 256 else f"^4{ord(character):04x}"


def _name(word: str) -> str:
    return _ESCAPED.sub(_unescape, word) if "^" in word else word


def _unescape(found: re.Match[str]) -> str:
    letter, short, long = found.groups()
    return str(letter).upper() if letter else chr(int(short or long, 16))
