"""Sinks of a pipeline: their names, and what their rows can be made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, InstanceOf, SerializeAsAny

from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.contracts.sink import SinkSettings

SinkName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Sinks = dict[SinkName, SerializeAsAny[InstanceOf[SinkSettings]]]


def check_sinks(
    sinks: Mapping[str, SinkSettings], process: ProcessorSettings | None, *, unreadable: str
) -> None:
    """Raise `ValueError` if a sink could not make its rows again, or would delete another's.

    `unreadable`: why files cannot be read back from archives; empty if they can.
    """
    _refuse_redoes_of_others(sinks)
    _refuse_missing_archives(sinks, process, unreadable)


def _refuse_redoes_of_others(sinks: Mapping[str, SinkSettings]) -> None:
    found: dict[str, str] = {}
    for name, sink in sinks.items():
        replaced = sink.replaced_by_redo()
        if replaced and replaced in found:
            raise ValueError(
                f"sinks: {found[replaced]} and {name} both fill {replaced}, and a redo of one "
                f"would delete the rows of the other; give each a column of its own"
            )
        found[replaced] = name


def _refuse_missing_archives(
    sinks: Mapping[str, SinkSettings], process: ProcessorSettings | None, unreadable: str
) -> None:
    late = [name for name, sink in sinks.items() if not sink.required]
    if process is not None and process.keep == "originals":
        why = "which has no results with process.keep: originals"
    else:
        why = unreadable
    if late and why:
        raise ValueError(
            f"sinks: rows for {late[0]} could not be made of an archive, {why}; set required: true "
            f"for the sink, so that slots wait for it"
        )
