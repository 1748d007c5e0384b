"""Finding a message, as a job: the answer is metadata of its one step."""

# No `from __future__ import annotations` here: Dagster reads the annotations of `context` and
# `config`.

from collections.abc import Iterator
from itertools import chain, islice

import dagster as dg
from pydantic import Field

from fuploader_dagster.assets.partitions import PRIORITY_TAGS, Names
from fuploader_dagster.assets.run_machine import note_machine
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.lookup.found import Copy, Letter, as_builtins
from fuploader_dagster.lookup.search import Search
from fuploader_dagster.lookup.wanted import Wanted
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

MOST_SHOWN = 200
"""A pattern may match millions; `fuploader find` shows all."""
_COLUMNS = ("name", "state", "partition", "where", "sinks", "more")


class FindConfig(dg.Config):
    """What a person can say in the launchpad."""

    name: str = Field(
        default="", description="File name, message id or pattern: prefix*, *, ?, [...]."
    )


def build_find_job(pipeline: Pipeline) -> dg.JobDefinition:
    """A job that says where a message is, as `fuploader find` does."""
    name = Names.of(pipeline).find_job
    op_name = f"{name}_op"

    @dg.op(name=op_name)
    def look(context: dg.OpExecutionContext, config: FindConfig) -> None:
        note_machine(context)
        if not config.name:
            raise dg.Failure(
                "the config has no name: say which message to find", allow_retries=False
            )
        search = Search(pipeline, _wanted(config.name))
        everything: Iterator[Copy | Letter] = chain(search.letters(), search.copies())
        found = list(islice(everything, MOST_SHOWN + 1))
        for one in found[:MOST_SHOWN]:
            context.log.info(" | ".join(filter(None, _row(one).values())))
        incomplete = [*search.incomplete(), *map(str, filter(None, [search.catalog_trouble]))]
        context.add_output_metadata(
            {
                "found": f"more than {MOST_SHOWN}" if len(found) > MOST_SHOWN else len(found),
                "answer": _table(found[:MOST_SHOWN]),
                "json": dg.MetadataValue.json([as_builtins(one) for one in found[:MOST_SHOWN]]),
                **({"not looked at": in_a_line("; ".join(incomplete))} if incomplete else {}),
            }
        )
        if not found:
            context.log.warning(
                f"nothing is known here of {in_a_line(config.name)}: it may wait in the queue, be "
                f"on another node, or never have been published"
            )

    @dg.job(
        name=name,
        executor_def=dg.in_process_executor,
        tags=PRIORITY_TAGS,
        description="Says where a message is: slot, archive, sinks, dead letters. Its answer is "
        "the metadata of the step.",
        config=dg.RunConfig(ops={op_name: FindConfig()}),
    )
    def find() -> None:
        look()

    return find


def _wanted(name: str) -> Wanted:
    try:
        return Wanted(name, patterns=True)
    except ConfigError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _table(found: list[Copy | Letter]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name, "string") for name in _COLUMNS]
    return dg.MetadataValue.table(
        records=[dg.TableRecord(_row(one)) for one in found],
        schema=dg.TableSchema(columns=columns),
    )


def _row(found: Copy | Letter) -> dict[str, str]:
    if isinstance(found, Letter):
        now = "waits" if found.waits else "sent back" if found.sent_back else "settled"
        state, where, sinks = "dead letter", found.id, ""
        more = f"{found.stage}, {now}: {found.reason}"
    else:
        state = found.state
        where = found.address or f"slot {found.slot}, directory {found.directory}"
        sinks = ", ".join(f"{name}: {at.state}" for name, at in found.sinks.items())
        more = found.trouble.error if found.trouble is not None else ""
        if found.current is False:
            more = "replaced when its messages were processed again"
    cells = (found.name or "", state, found.partition or "", where, sinks, more)
    return {column: in_a_line(cell) for column, cell in zip(_COLUMNS, cells, strict=True)}
