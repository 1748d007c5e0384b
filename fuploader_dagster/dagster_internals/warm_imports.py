"""What the process from which runs are forked imports in advance (`warm_runs.py`).

That process imports this module before anything else, because collecting garbage during all these
imports would take a fifth of their time. Forks collect garbage as usual, but leave out what was
made here: a collection writes to, and so copies, every page that it looks at.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

gc.disable()

from fuploader_dagster.settings.loading import KINDS  # noqa: E402

MODULES = (
    # What Dagster itself imports only when it needs it.
    "dagster._core.definitions.repository_definition.repository_data_builder",
    "dagster._core.execution.plan.active",
    "dagster._core.executor.in_process",
    "dagster._core.instance.factory",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.root",
    "dagster._core.workspace.autodiscovery",
    "dagster._daemon.controller",
    "upath.implementations.local",
    "fuploader_dagster.dagster_internals.warm_runs",
    "fuploader_dagster.definitions",
    "fuploader_dagster.dagster_internals.sqlite_history",
    *(reference.partition(":")[0] for kinds in KINDS.values() for reference in kinds.values()),
)

for _module in MODULES:
    with suppress(ImportError):  # an SDK that is not installed
        import_module(_module)
with suppress(ImportError):
    import_module("fuploader_dagster.resources.object_stores.s3_service")
    import_module("fuploader_dagster.resources.object_stores.s3_client").read_models()
gc.freeze()
gc.enable()
