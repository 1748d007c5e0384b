"""Which rows there are: a module for each group, each a function `rows(ground)`.

The first groups are the short form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.ground import Ground
from benchmarks.results import Row
from benchmarks.rows import (
    dagster_ticks,
    downloads,
    drain,
    growth,
    histories,
    memory,
    packing,
    processing,
    queue_sources,
    quiet,
    serving,
    sinks,
    sql_source,
    under_dagster,
    upload,
    variants,
    whole_way,
)

GROUPS: dict[str, Callable[[Ground], Iterator[Row]]] = {
    "drain": drain.rows,
    "packing": packing.rows,
    "whole-way": whole_way.rows,
    "under-dagster": under_dagster.rows,
    "upload": upload.rows,
    "processing": processing.rows,
    "downloads": downloads.rows,
    "serve": serving.rows,
    "sinks": sinks.rows,
    "sql-source": sql_source.rows,
    "queue-sources": queue_sources.rows,
    "queue-memory": queue_sources.memory_rows,
    "variants": variants.rows,
    "memory": memory.rows,
    "quiet": quiet.rows,
    "ticks": dagster_ticks.rows,
    "growth": growth.rows,
    "histories": histories.rows,
}
QUICK = ("drain", "packing", "whole-way")
