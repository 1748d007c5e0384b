"""Sinks of a pipeline: their names, and what their rows can be made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, InstanceOf, SerializeAsAny

from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.contracts.sink import SinkSettings

SinkName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Sinks = dict[SinkName, SerializeAsAny[InstanceOf[SinkSettings]]]


def refuse_sinks_without_archives(
    sinks: Mapping[str, SinkSettings], process: ProcessorSettings | None, *, unreadable: str
) -> None:
    """Raise `ValueError` if rows may have to be made of archives that have no items of them, or
    whose files cannot be read back. `unreadable` says why; empty if they can."""
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
