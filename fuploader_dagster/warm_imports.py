"""What the process that runs are forked from imports before the first run (`warm_runs.py`)."""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

from fuploader_dagster.loading import KINDS

MODULES = (
    "dagster._core.storage.local_compute_log_manager",
    "dagster._daemon.controller",
    "fuploader_dagster.definitions",
    "fuploader_dagster.sqlite_history",
    "fuploader_dagster.resources.object_stores.s3_service",
    *(reference.partition(":")[0] for kinds in KINDS.values() for reference in kinds.values()),
)

for _module in MODULES:
    with suppress(ImportError):  # an SDK that is not installed
        import_module(_module)
gc.collect()
gc.freeze()  # a collection in a fork would write to, and so copy, all that was imported
