"""The parts of the settings of a SQL table that are settings of their own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, StrictStr, model_validator

from fuploader_dagster.contracts.settings import Seconds, Settings
from fuploader_dagster.resources.sources.sql.table import plain

Name = Annotated[str, Field(min_length=1, max_length=63)]


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("a column is named twice")
    return names


Names = Annotated[tuple[Name, ...], BeforeValidator(_as_list), AfterValidator(_each_once)]
Value = StrictInt | StrictStr


class SkipDone(Settings):
    """Where it is to be seen which rows are done."""

    table: Name
    """Table of the results. A row is done when it is there."""
    schema_name: Name | None = None
    """Schema of that table."""
    match: Annotated[Mapping[Name, Name], Field(min_length=1)]
    """Columns of the results and the columns of the source that they are equal to:
    `{doc_id: mid}`. NULL is equal to nothing."""
    again_seconds: Seconds = 3_600.0
    """How long after the beginning of one pass through the table the next begins. It gives the rows
    again that still have no result."""

    def is_done(self, source: sa.TableClause) -> sa.ColumnElement[bool]:
        done = sa.table(self.table, *map(sa.column, self.match), schema=self.schema_name).alias(
            "fuploader_done"
        )
        equal = [done.c[theirs] == source.c[ours] for theirs, ours in self.match.items()]
        return sa.exists(sa.literal(1)).select_from(done).where(*equal)


class Status(Settings):
    """A column that says how far a row is."""

    column: Name
    """Name of the column."""
    ready: Value | None = "ready"
    """Value of rows that are to be read; null: NULL."""
    claimed: Value = "claimed"
    """Value of rows that a worker has in hand."""
    done: Value = "done"
    """Value of rows that are stored durably here, ready to be packed."""
    failed: Value | None = None
    """Value of rows that became dead letters; by default that of `done`."""

    @model_validator(mode="after")
    def _tell_rows_apart(self) -> Status:
        values = [("ready", self.ready), ("claimed", self.claimed), ("done", self.done)]
        for (one, value), (other, same) in combinations(values, 2):
            if str(value) == str(same):
                raise ValueError(f"{one} and {other} must differ: both are {value}")
        if self.failed is not None and str(self.failed) in map(str, (self.ready, self.claimed)):
            raise ValueError("failed must differ from ready and claimed: rows would come again")
        return self

    def is_ready(self) -> sa.ColumnElement[bool]:
        column: sa.ColumnClause[Any] = sa.column(self.column)
        return column.is_(None) if self.ready is None else column == plain(self.ready)
