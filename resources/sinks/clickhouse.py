"""A table of ClickHouse: the rows of a slot are one INSERT, and a column says whose they are.

What must always hold:

- Each row has in `slot_column` the delivery that it belongs to, and how many rows that has in all.
  So a count tells whether a delivery is stored, stored in part, or stored twice, whatever died, and
  with or without a table that remembers tokens. Only one that is counted in full is stored.
- An INSERT of a delivery has a token of its own, so that one which is repeated, or comes late, is
  stored once by a table that remembers tokens. Tokens outlive rows: after rows were deleted, what
  is stored in their place has other tokens.
- What is there in part, or twice, or of an earlier redo, is deleted before anything is stored in
  its place.

ClickHouse has no transactions: a delivery of more than 1,000,000 rows or 64 MiB is several INSERTs,
and a reader may see the first without the last. `slot_column` holds, for example,
`20261120T234501123Z-node1-s0-000017 shop/rows 10000`; after a redo, `...-000017#1 shop/rows 10000`.

What this cannot do: two processes that store the same delivery at the same moment, into a table
that remembers no tokens, may both store it. `delivery/rows.py` has a lock for that.

How it works: `clickhouse_rows` keeps the rows, `clickhouse_blocks` checks and encodes them by what
`clickhouse_values` knows of columns, `clickhouse_table` the table, `clickhouse_server` the calls.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Seconds
from fuploader_dagster.contracts.sink import (
    Delivery,
    ItemRows,
    Reject,
    Sink,
    SinkSettings,
    StoredRows,
)
from fuploader_dagster.errors import SinkRefused, SinkUnavailable
from fuploader_dagster.resources.sinks.clickhouse_examination import examine
from fuploader_dagster.resources.sinks.clickhouse_rows import RowsToStore, columns_of
from fuploader_dagster.resources.sinks.clickhouse_server import Server
from fuploader_dagster.resources.sinks.clickhouse_table import Table, described, quoted
from fuploader_dagster.settings.secret import Secret, place_of_unset

MOST_ATTEMPTS = 4
"""Tokens that are tried in one attempt of the engine."""

Name = Annotated[str, Field(min_length=1, max_length=200)]


class ClickHouseSink(SinkSettings):
    """A table of ClickHouse, with a plain MergeTree engine and a column that says which slot a row
    came from. It must exist."""

    url: Secret
    """Address of ClickHouse's HTTP interface: `http://user:password@host:8123/database`, or
    `https://…` (port 8443 by default)."""
    table: Name
    """Name of the table, or `database.table`."""
    slot_column: Name = "_slot"
    """A column of the type String or LowCardinality(String). It gets the key of the partition, the
    names of pipeline and sink, and the number of rows of that slot, which are counted by it. A
    minmax index on it makes counting quick in a large table."""
    ca_file: Path | None = None
    """Certificate authority, in PEM format, of a server whose certificate the system does not
    trust."""
    timeout_seconds: Seconds = 60.0
    """Longest time that one call of ClickHouse may take: an INSERT of up to 1,000,000 rows, or
    deleting the rows of a slot."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: Secret) -> Secret:
        if place_of_unset(url):
            return url
        try:
            parts = urlsplit(url.get_secret_value())
            usable = (
                parts.scheme in ("http", "https")
                and bool(parts.hostname)
                and parts.port != 0
                and not parts.query
                and "/" not in parts.path.strip("/")
            )
        except ValueError:  # not passed on, because it may quote the password
            usable = False
        if not usable:
            raise ValueError("url must look like http://user:password@host:8123/database")
        return url

    def sink(self) -> ClickHouseTarget:
        return ClickHouseTarget(self)

    def describe(self) -> str:
        return f"table {self.table} at {self.server_address}"

    @property
    def server_address(self) -> str:
        """Without login."""
        if unset := place_of_unset(self.url):
            return unset
        parts = self.parsed_url
        port = f":{parts.port}" if parts.port else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}{port}"

    @property
    def parsed_url(self) -> SplitResult:
        return urlsplit(self.url.get_secret_value())

    def examine(self) -> Iterator[Diagnosis]:
        target = ClickHouseTarget(self)
        try:
            yield from target.examine()
        finally:
            target.close()


@dataclass(frozen=True)
class _Counted:
    """Rows that are in the table, of one delivery of a partition."""

    mark: str
    """In the slot column."""
    redo: int
    of: int
    """As many as there should be."""
    rows: int

    @property
    def whole(self) -> bool:
        return self.rows == self.of


class ClickHouseTarget(Sink):
    """The sink itself. Keeps a connection between deliveries."""

    def __init__(self, settings: ClickHouseSink) -> None:
        self._settings = settings
        self._server = Server(
            settings.parsed_url,
            ca_file=str(settings.ca_file) if settings.ca_file else None,
            timeout_seconds=settings.timeout_seconds,
            where=settings.server_address,
        )
        self._table: Table | None = None

    def store(self, delivery: Delivery, items: Iterable[ItemRows], reject: Reject) -> StoredRows:
        table = self._table or self.open()
        try:
            return self._store(table, delivery, items, reject)
        except (SinkRefused, SinkUnavailable):
            self._table = None  # it may have been altered
            raise

    def _store(
        self, table: Table, delivery: Delivery, items: Iterable[ItemRows], reject: Reject
    ) -> StoredRows:
        there = self._counted(table, delivery)
        whole = [one for one in there if one.whole and one.redo >= delivery.redo]
        if whole:
            newest = max(whole, key=lambda one: one.redo)
            self._delete(table, [one for one in there if one is not newest])
            return StoredRows(newest.rows, self._address(table), already_there=True)
        with RowsToStore(table, self.open) as rows:
            rows.add(items)
            if not rows.items:  # then the table may be to blame
                rows.rejections.refuse_unknown_column()
                rows.rejections.refuse_if_enough(self._settings.describe())
            if rows.rejections:
                reject(rows.rejections.in_order())
            self._insert(rows, delivery, there)
            return StoredRows(rows.rows, self._address(table))

    def examine(self) -> Iterator[Diagnosis]:
        return examine(self._server, self.open, tuple(self._settings.columns or ()))

    def close(self) -> None:
        self._table = None
        self._server.close()

    def open(self) -> Table:
        """Look at the table. Raises `SinkRefused` if it does not fit the settings."""
        settings = self._settings
        database, _, name = settings.table.rpartition(".")
        self._table = described(
            self._server, name, database or None, settings.slot_column, settings.columns or ()
        )
        return self._table

    def _insert(self, rows: RowsToStore, delivery: Delivery, there: Sequence[_Counted]) -> None:
        """Store what is kept, in place of what is there of the partition."""
        table, mark = rows.table, _mark(delivery, rows.rows)
        # What is there in part had the first tokens, and their hashes outlive its rows.
        first = 1 if any(one.mark == mark for one in there) else 0
        for attempt in range(first, first + MOST_ATTEMPTS):
            self._delete(table, there)
            if not rows.rows:
                return
            self._insert_once(rows, mark, f"{mark} {attempt}" if attempt else mark)
            there = self._counted(table, delivery)
            if len(there) == 1 and there[0].mark == mark and there[0].whole:
                return
        counted = sum(one.rows for one in there)
        raise SinkUnavailable(
            f"stored {rows.rows} rows of {delivery.id} in {self._settings.describe()}, and counted "
            f"{counted}",
            hint="is there a TTL on the table, a row policy for the user, or a replica that is "
            "behind? If somebody deleted these rows before, store the partition with a redo",
        )

    def _insert_once(self, rows: RowsToStore, mark: str, token: str) -> None:
        name = hashlib.sha256(mark.encode()).hexdigest()[:32]
        for number, blocks in enumerate(rows.inserts()):
            self._server.insert(
                rows.table.quoted,
                [*columns_of(blocks), rows.table.slot_column],
                lambda blocks=blocks: rows.sent(blocks, mark),  # type: ignore[misc]
                {
                    "query_id": f"fuploader-{name}-{number}",  # runs once at a time on a server
                    "insert_deduplicate": 1,
                    "insert_deduplication_token": f"{token}/{number}",
                    "async_insert": 0,
                    # One block, so one part for each partition of the table.
                    "min_insert_block_size_rows": 1 << 30,
                    "min_insert_block_size_bytes": 0,
                },
                f"could not insert into {self._settings.describe()}",
            )

    def _counted(self, table: Table, delivery: Delivery) -> list[_Counted]:
        """What is in the table of the delivery's partition."""
        column = quoted(table.slot_column)
        found = self._server.query(
            f"SELECT {column}, count() FROM {table.quoted} "  # noqa: S608
            f"WHERE startsWith({column}, {{partition:String}}) GROUP BY 1",
            f"could not count rows in {self._settings.describe()}",
            {"partition": delivery.partition},
        )
        mark = re.compile(
            rf"{re.escape(delivery.partition)}(?:#(\d+))? "
            rf"{re.escape(delivery.pipeline)}/{re.escape(delivery.sink)} (\d+)"
        )
        return [
            _Counted(text, int(match[1] or 0), int(match[2]), int(count))
            for text, count in found
            if (match := mark.fullmatch(str(text)))
        ]

    def _delete(self, table: Table, those: Sequence[_Counted]) -> None:
        if not those:
            return
        marks = {f"mark{number}": one.mark for number, one in enumerate(those)}
        names = ", ".join(f"{{{name}:String}}" for name in marks)
        self._server.command(
            f"DELETE FROM {table.quoted} WHERE {quoted(table.slot_column)} IN ({names})",  # noqa: S608
            f"could not delete earlier rows of a slot in {self._settings.describe()}",
            marks,
        )

    def _address(self, table: Table) -> str:
        return f"{self._settings.server_address}/{table.name}"


def _mark(delivery: Delivery, rows: int) -> str:
    return f"{delivery.id} {delivery.pipeline}/{delivery.sink} {rows}"
