"""Pipelines that Dagster's objects were built of in this process, and how to find them again.

Definitions are merged, and what is in them does not say which pipeline it was built of. So whoever
builds objects notes their names with the pipeline, and whoever has definitions asks for the
pipelines of the names in them.
"""

from __future__ import annotations

from collections.abc import Collection

from fuploader_dagster.settings.pipeline import Pipeline

_built: dict[tuple[str, str | None], tuple[Pipeline, frozenset[str]]] = {}


def note_built(pipeline: Pipeline, names: Collection[str]) -> None:
    """Objects with some of these names were built of the pipeline."""
    _built[pipeline.name, pipeline.node_id] = (pipeline, frozenset(names))


def built_of(names: Collection[str]) -> list[Pipeline]:
    """The pipelines of which objects with any of these names were built."""
    return [pipeline for pipeline, known in _built.values() if known.intersection(names)]
