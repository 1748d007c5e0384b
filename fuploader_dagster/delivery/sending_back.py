"""Dead letters that are about to be sent back: to the queue, to processing, or to a sink.

What must always hold: while a letter is sent and until that is noted, nobody else works on its
partition; and before, nobody did so without an end. Otherwise a redo could give the results of the
same item once more. Nobody is waited for, because a redo may take hours: the letter stays, and the
sentence says what works on its partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from fuploader_dagster.dead_letters.letters import DeadLetter, sink_of
from fuploader_dagster.delivery.settled_letters import settled
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import SlotInUse
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import find_receipt

BATCH = 500
"""Letters that are sent before that is noted; each may hold a lock."""

Numbered = tuple[str, DeadLetter]


class SendingBack:
    """Letters to send, and why some of them are not sent."""

    def __init__(self, letters: Sequence[Numbered], pipeline: Pipeline) -> None:
        self._letters = letters
        self._pipeline = pipeline
        self.settled: dict[str, str] = {}
        """Ids of letters that need not be sent, each with a sentence that says why."""
        self.busy: dict[str, str] = {}
        """Ids of letters that cannot be sent now."""

    def __len__(self) -> int:
        return len(self._letters)

    def batches(self) -> Iterator[list[Numbered]]:
        """Those that can be sent. Until the next batch is asked for, nobody works on their
        partitions: by then it has to be noted that they were sent."""
        for start in range(0, len(self._letters), BATCH):
            with ExitStack() as held:
                batch = self._free(self._letters[start : start + BATCH], held)
                done = settled(batch, self._pipeline)
                self.settled |= done
                if left := [pair for pair in batch if pair[0] not in done]:
                    yield left

    def _free(self, letters: Sequence[Numbered], held: ExitStack) -> list[Numbered]:
        """Hold what these letters' partitions are worked on under, where nobody else does."""
        in_work: dict[Path, str] = {}
        """By lock: why it could not be had; empty where it is held."""
        free: list[Numbered] = []
        for letter_id, letter in letters:
            if letter.item is not None:
                partition, sink = letter.item.partition, sink_of(letter)
                path = self._lock_of(partition, sink)
                if path not in in_work:
                    in_work[path] = self._hold(path, partition, sink, held)
                if in_work[path]:
                    self.busy[letter_id] = in_work[path]
                    continue
            free.append((letter_id, letter))
        return free

    def _lock_of(self, partition: str, sink: str) -> Path:
        layout = self._pipeline.layout
        return layout.sink_lock(sink, partition) if sink else layout.partition_lock(partition)

    def _hold(self, path: Path, partition: str, sink: str, held: ExitStack) -> str:
        layout = self._pipeline.layout
        lock = FileLock(path)
        try:
            lock.acquire()
        except SlotInUse:
            what = f"stored in the sink {sink}" if sink else "processed or uploaded"
            return f"{partition} is being {what} now; send the letter when that is over"
        held.callback(lock.release)
        if sink or find_receipt(layout, partition) is not None:
            held.callback(path.unlink, missing_ok=True)
        folder = layout.redo / partition
        if not sink and folder.exists():
            return (
                f"{partition} is processed again, and that was interrupted: materialise its "
                f"processed slot with the tag `fuploader/redo: true` once more, or remove {folder} "
                f"to give the redo up"
            )
        return ""
