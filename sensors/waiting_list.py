"""The hand-over from the drain to the drain sensor: the state store's list of sealed slots.

    intake/drain.py  after each seal, and at its start for everything that is sealed: adds the
                     partition key (`Commit.sealed`, `StateStore.add_sealed`)
    drain sensor     each tick: reads the list, registers the partitions and asks for runs;
                     a later tick, which sees the partition in the instance, removes the key
                     (`StateStore.forget_sealed`)

A tick whose answer was lost is simply repeated, and a
list that was lost comes back: workers add their sealed slots when they start, and the recovery
schedule adds those that are registered nowhere.

What must always hold: a key leaves the list only when its partition is in the instance, or when it
is not a slot of this pipeline: anything else that somebody put there is removed and logged.
Otherwise it would fail each tick (Dagster refuses some names) and stay at the head of the list. A
key of this node is registered only where its slot is on this disk: another machine may have the
same node name, and runs that were asked for here would not find its slots.
"""

import logging
from collections.abc import Sequence

import dagster as dg

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.state import StateStore
from fuploader_dagster.delivery.mended import find_mended
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import find_receipts
from fuploader_dagster.slots.sealing import find_sealed

KEYS_LOOKED_AT = 10_000
"""A worker that starts adds everything that is sealed, also what was registered long ago and waits
for a store that is down. New keys come last and must not wait until all those are passed."""
LOOKS_PER_TICK = 10
"""How often a tick looks again after it found nothing but junk in the list."""
LONGEST_KEY = 200
"""Characters. A key has about 100 with the longest node_id; it names a lock file, too."""

log = logging.getLogger(__name__)


class WaitingList:
    """The list of an open state store. Unless `changing`, nothing is removed from it."""

    def __init__(self, state: StateStore, pipeline: Pipeline, *, changing: bool) -> None:
        self._state = state
        self._pipeline = pipeline
        self._changing = changing
        self.elsewhere = 0
        """How many keys of this node are of slots that are not on this disk."""

    def unregistered(self, instance: dg.DagsterInstance, names: Names, most: int) -> list[str]:
        """At most so many keys of slots on this disk that are no partitions yet. Keys that are
        partitions leave the list."""
        waiting = self._ours()
        if not waiting:
            return []
        registered = instance.get_existing_dynamic_partitions(names.partition_set, waiting)
        if self._changing:
            self._state.forget_sealed([key for key in waiting if key in registered])
        layout = self._pipeline.layout
        new: list[str] = []
        missing: list[str] = []
        for key in waiting:
            if len(new) >= most:
                break
            if key not in registered:
                (new if _is_here(key, layout) else missing).append(key)
        stored = find_receipts(layout, missing[:most])  # without Dagster
        self.elsewhere = len(missing) - len(stored)
        return sorted([*new, *stored])[:most]

    def _ours(self) -> list[str]:
        for _ in range(LOOKS_PER_TICK):
            found = self._state.sealed(KEYS_LOOKED_AT)
            ours = [key for key in found if _is_ours(key, self._pipeline)]
            if len(ours) < len(found) and self._changing:
                kept = set(ours)
                self._remove([key for key in found if key not in kept])
            if ours or not found:
                return ours
        return []

    def _remove(self, junk: Sequence[str]) -> None:
        self._state.forget_sealed(junk)
        first = junk[0] if len(junk[0]) <= LONGEST_KEY else f"{junk[0][:LONGEST_KEY]}..."
        log.warning(
            "%s listed, for pipeline %s on node %s, %d sealed slots that are not partition keys of "
            "this pipeline, the first one %r. They were removed from the list and nothing is lost. "
            "Find out who else writes there",
            self._pipeline.state.describe(),
            self._pipeline.name,
            self._pipeline.node,
            len(junk),
            first,
        )


def _is_ours(text: str, pipeline: Pipeline) -> bool:
    """Whether it is the key of a slot of this node, or of one that is sealed on its disk.

    The latter has another node's name if `node_id` was changed since.
    """
    key = PartitionKey.parse(text) if len(text) <= LONGEST_KEY else None
    if key is None:
        return False
    return key.node == pipeline.node or _is_here(text, pipeline.layout)


def _is_here(key: str, layout: Layout) -> bool:
    """Whether the slot, or what became of it, is on this disk."""
    try:
        return find_sealed(layout, key) is not None or find_mended(layout, key) is not None
    except FuploaderError:  # its directory is damaged, and the run will say so
        return True
