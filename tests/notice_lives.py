"""Lives of a pipeline that tells of its tasks, for the tests that kill them."""

from __future__ import annotations

from fuploader_dagster.delivery import notices, recovery
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.ship import upload_partitions
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.slot import SlotOwner
from tests.lives import plan_of
from tests.notifiers_for_tests import JournalNotices
from tests.processors_for_tests import ScriptWithFolders, script

TASKS = {f"t{n}.json": {"files": [f"t{n}-{f}.jpg" for f in range(5)]} for n in range(4)}
TASKS["t1.json"]["missing"] = ["t1-lost.jpg"]
TASKS["bad.json"] = {"bad": "no such task"}  # type: ignore[dict-item]


def to_tell(settings: Pipeline) -> None:
    """A sealed slot for each task."""
    with SlotOwner(_telling(settings), 0) as slot:
        for name, steps in TASKS.items():
            slot.add(name, script(**steps))
        slot.commit()
        slot.seal_divided("count")


def telling(settings: Pipeline) -> None:
    """Process and ship all tasks, and tell of them."""
    settings = _telling(settings)
    recovery.apply(plan_of(settings), settings)
    partitions = plan_of(settings).ask
    list(process_partitions(partitions, settings))
    list(upload_partitions(partitions, settings, settings.store.open()))
    notices.wake(settings)
    notices.settle(settings, 120)


def _telling(settings: Pipeline) -> Pipeline:
    journal = JournalNotices(path=settings.storage_root.parent / "journal", presigned_seconds=0)
    process = ScriptWithFolders(concurrency=3)
    made = {"seal_each": "message", "notify": (journal,), "process": process, "slots_per_worker": 1}
    return settings.model_copy(update=made)
