"""The catalog: which archive holds the file of this name?

What must always hold:

- The object store is the truth, the catalog only knows where to look: it can be lost at any time
  and made again from the archives' manifests (`catalog_rebuild`). Nothing waits for it or fails
  because of it.
- An archive is in it with all its names or not at all. Adding it again changes nothing.

Format: `catalog.sqlite` below the pipeline's folder, SQLite with write-ahead log; `user_version` is
the format's version, 2.

    archives   one row per archive: address, key, partition, sealed_at, members, size, digest
    names      FTS5: one document per archive (its rowid is the archive's id), whose words are the
               names; no columns, positions or contents are kept, only word -> archives
    vocabulary the words of `names` in order, for exact names and prefixes
    lists      per archive its names as one compressed list (`name_lists`), for other patterns

An inverted index, because names come in random order: a B-tree of names rewrites a page for each
of them, FTS5 appends a sorted run per archive and merges runs little by little (measured with ten
million names: a tenth of the time, two thirds of the size; docs/decisions/0006-the-catalog.md).
A removed archive's words stay until a rebuild; no row answers for them.

Names become words by escaping what FTS5 would change or cut at: capitals, quotes, white space and
control characters, as `^` and what `_escape` says. A prefix of a name is a prefix of its word.
"""

from __future__ import annotations

import fnmatch
import re
import sqlite3
import string
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from fuploader_dagster.errors import PermanentError
from fuploader_dagster.fileio import make_dirs
from fuploader_dagster.name_lists import NamePattern, pack_names

FORMAT_VERSION = 2
_WAIT_SECONDS = 30.0
"""For another upload's transaction. One takes some 30 ms for 10,000 names."""

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
pragma user_version = {FORMAT_VERSION};
"""


class CatalogUnusable(PermanentError):
    """The catalog cannot be read or written. Archives and uploads do not need it."""


class CatalogedArchive(NamedTuple):
    """An archive as the catalog knows it."""

    address: str
    key: str
    partition: str
    """Empty where the archive's name does not tell."""
    sealed_at: str
    """UTC, ISO 8601; empty where there is no partition."""
    members: int
    size_bytes: int
    sha256: str | None


class Hit(NamedTuple):
    """A file of this name is in this archive."""

    name: str
    archive: CatalogedArchive


class Catalog:
    """An open catalog. Used by one thread; many processes may have it open. A context manager."""

    def __init__(self, path: Path) -> None:
        """Opens the catalog; makes it if it is missing. Raises `CatalogUnusable`."""
        self._path = path
        with self._explained():
            make_dirs(path.parent)
            self._db = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        self._db.execute("pragma journal_mode = wal")
        # A power cut may cost the newest archives' entries, never the file; no fsync per archive.
        self._db.execute("pragma synchronous = normal")
        if self._version() == 0:
            with self._transaction():
                if self._version() == 0:  # nobody was quicker
                    for statement in _SCHEMA.split(";\n"):
                        self._db.execute(statement)
        if self._version() != FORMAT_VERSION:
            raise CatalogUnusable(
                f"{self._path} has format version {self._version()}, this program knows "
                f"{FORMAT_VERSION}",
                hint="fuploader catalog rebuild --anew",
            )

    def _version(self) -> int:
        (version,) = self._db.execute("pragma user_version").fetchone()
        return int(version)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, archive: CatalogedArchive, names: Iterable[str]) -> bool:
        """Add an archive with the names of its members; False if it is there already.

        Another archive under the same address is replaced.
        """
        with self._explained():
            names = list(names)
            words, packed = "\n".join(map(_word, names)), pack_names(names)
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
                self._db.execute(
                    "insert into names (rowid, name) values (?, ?)", [added.lastrowid, words]
                )
                self._db.execute("insert into lists values (?, ?)", [added.lastrowid, packed])
        return True

    def forget(self, address: str) -> None:
        """The archive is gone from the store; one that is not there is no error."""
        with self._explained(), self._transaction():
            self._remove(address)

    def _remove(self, address: str) -> None:
        self._db.execute(
            "delete from lists where archive = (select id from archives where address = ?)",
            [address],
        )
        self._db.execute("delete from archives where address = ?", [address])

    def archives(self) -> dict[str, CatalogedArchive]:
        """All archives, by their address."""
        with self._explained():
            rows = self._db.execute("select * from archives").fetchall()
        return {row[1]: CatalogedArchive(*row[1:]) for row in rows}

    def find(self, wanted: str) -> Iterator[Hit]:
        """The files of this name, and where the name has `*`, `?` or `[...]` all that match.

        In the order of the names' words; files of one name by the time of their archives. A
        pattern is looked up by what stands before its first wildcard. One that begins with a
        wildcard is looked for in each archive's list instead, in the order of the archives' time.
        """
        with self._explained():
            yield from self._hits(self._exactly(_word(wanted)))
            wildcard = re.search(r"[*?[]", wanted)
            if wildcard and wildcard.start() == 0:
                yield from self._in_lists(wanted)
            elif wildcard:
                start = _word(wanted[: wildcard.start()])
                fits = re.compile(fnmatch.translate(wanted)).match
                yield from self._hits(
                    (name, document)
                    for name, document in self._beginning(start)
                    if fits(name) and name != wanted
                )

    def _in_lists(self, wanted: str) -> Iterator[Hit]:
        pattern = NamePattern(wanted)
        ordered = self._db.execute("select id from archives order by sealed_at, address").fetchall()
        for (number,) in ordered:
            row = self._db.execute("select names from lists where archive = ?", [number]).fetchone()
            found = [name for name in pattern.find_in(row[0]) if name != wanted] if row else []
            archive = self._archive(number) if found else None
            if archive is not None:
                yield from (Hit(name, archive) for name in found)

    def _exactly(self, word: str) -> Iterator[tuple[str, int]]:
        rows = self._db.execute("select term, doc from vocabulary where term = ?", [word])
        return ((_name(term), document) for term, document in rows)

    def _beginning(self, start: str) -> Iterator[tuple[str, int]]:
        rows = self._db.execute("select term, doc from vocabulary where term >= ?", [start])
        for term, document in rows:
            if not term.startswith(start):
                break
            yield _name(term), document

    def _hits(self, words: Iterable[tuple[str, int]]) -> Iterator[Hit]:
        for name, found in groupby(words, key=lambda one: one[0]):
            archives = [self._archive(document) for _, document in found]
            there = [archive for archive in archives if archive is not None]
            for archive in sorted(there, key=lambda one: (one.sealed_at, one.address)):
                yield Hit(name, archive)

    def _archive(self, number: int) -> CatalogedArchive | None:
        row = self._db.execute("select * from archives where id = ?", [number]).fetchone()
        return CatalogedArchive(*row[1:]) if row else None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.execute("commit")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise CatalogUnusable(
                f"the catalog {self._path} cannot be used: {error}",
                hint="if it is damaged: fuploader catalog rebuild --anew",
            ) from error


_CHANGED = re.compile("[A-Z^'\" \x00-\x1f\x7f\ud800-\udfff]")
_ESCAPED = re.compile(r"\^(?:([a-z])|2([0-9a-f]{2})|4([0-9a-f]{4}))")


def _word(name: str) -> str:
    """The name as FTS5 keeps it: what it would change or cut at is escaped."""
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
