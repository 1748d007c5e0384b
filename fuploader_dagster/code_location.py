"""The code location that workspace.yaml loads: the pipelines of `fuploader.yaml`.

A project that has a code location of its own calls `build_definitions` there instead.
"""

from __future__ import annotations

import dagster as dg

from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.safe_text import make_records_safe

make_records_safe("fuploader_dagster")
defs = dg.Definitions.merge(
    build_definitions(*load_pipelines().values()),
    # A run of ours is one process anyway; a process per step would double what it costs.
    dg.Definitions(executor=dg.in_process_executor),
)
