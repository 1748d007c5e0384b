"""Lives of a pipeline with sinks, for the tests that kill them."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from fuploader_dagster.dead_letters.letters import numbered_dead_letters, requeued_ids
from fuploader_dagster.delivery import recovery
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.rows import store_partitions
from fuploader_dagster.delivery.ship import upload_partitions
from fuploader_dagster.delivery.stored_letters import store_letters
from fuploader_dagster.resources.sinks.sql import SqlSink
from fuploader_dagster.settings.pipeline import Pipeline
from tests.lives import fill, plan_of
from tests.sinks_for_tests import RowsFile


def to_store(settings: Pipeline) -> None:
    """Four sealed slots of items, some of which have no rows; and a table."""
    with closing(sqlite3.connect(settings.storage_root.parent / "kept.sqlite")) as database:
        database.execute("CREATE TABLE kept (slot INTEGER NOT NULL, n INTEGER NOT NULL)")
    for slot in range(4):
        content = {f"s{slot}-{n}.json": b'{"slot": %d, "n": %d}' % (slot, n) for n in range(6)}
        odd = {"a-refused.json": b'{"refused": 1}', "b-bad.json": b"{"}
        fill(settings, slot, content | {f"s{slot}-{name}": one for name, one in odd.items()}, True)


def rows_settings(settings: Pipeline) -> Pipeline:
    """The same with two sinks, one of which keeps slots until it has their rows."""
    folder = settings.storage_root.parent
    made = {
        "rows": RowsFile(path=folder / "rows.sqlite"),
        "kept": SqlSink(
            url=f"sqlite:///{folder / 'kept.sqlite'}",
            table="kept",
            columns=["slot", "n"],
            required=True,
        ),
    }
    return settings.model_copy(update={"sinks": made})


def storing(settings: Pipeline) -> None:
    """Store the rows of one slot from the disk, those of the others as recovery asks for them."""
    settings = rows_settings(settings)
    recovery.apply(plan_of(settings), settings)
    asked = plan_of(settings).ask
    open_archive = ArchiveFinder({settings.name: settings}).open
    list(store_partitions(asked[:1], settings, "rows", open_archive))
    list(store_partitions(asked[:2], settings, "kept", open_archive))
    list(upload_partitions(asked, settings, settings.store.open()))
    for sink, partitions in plan_of(settings).rows.items():
        list(store_partitions(partitions, settings, sink, open_archive))


def storing_letters(settings: Pipeline) -> None:
    """Store the dead letters of the sinks again, now that the first ones are taken."""
    settings = rows_settings(settings)
    taken = settings.sinks["rows"].model_copy(update={"takes_refused": True})
    settings = settings.model_copy(update={"sinks": {**settings.sinks, "rows": taken}})
    sent = requeued_ids(settings.layout)
    letters = [pair for pair in numbered_dead_letters(settings.layout) if pair[0] not in sent]
    store_letters([letters], settings)
