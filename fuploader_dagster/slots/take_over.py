"""Take-overs: in which epoch of each slot this copy of the storage root writes it.

What must always hold: an epoch that the state store grants was written here before the store was
asked. So the copy that took a slot last knows it, whatever was killed in between, and a copy that
does not know the last epoch was not the last to write: the store refuses it (`StateStore.take`).

Format of `epochs/slot-0`, one JSON object: `epoch`; `nonce`, 32 hex digits drawn for it; `granted`:
false from before the store is asked until it has agreed. An epoch that was not granted is asked
for again; after one that was, the next.
"""

from __future__ import annotations

import logging
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from fuploader_dagster.contracts.state import HIGHEST_EPOCH, Claim, StateStore
from fuploader_dagster.disk.durable import make_dirs, write_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.place import place_of
from fuploader_dagster.disk.root_id import root_id
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.errors import UNREADABLE_JSON

log = logging.getLogger(__name__)


_NONCE = re.compile(r"[0-9a-f]{32}")


class _Epoch(msgspec.Struct):
    epoch: int
    nonce: str
    granted: bool


@dataclass(frozen=True)
class TakeOver:
    """Takes slots over for a storage root where it is now. Only for slots whose locks are held."""

    layout: Layout
    root_id: str
    place: str

    @classmethod
    def of(cls, layout: Layout) -> TakeOver:
        return cls(layout, root_id(layout), place_of(layout))

    def take(self, slot: int, state: StateStore, ttl_seconds: float) -> Claim:
        """Take the slot over, and return the claim. Raises what `StateStore.take` raises."""
        wanted = self._read(slot) or _Epoch(0, "", granted=True)
        if wanted.granted:
            epoch = min(wanted.epoch + 1, HIGHEST_EPOCH)
            wanted = _Epoch(epoch, secrets.token_hex(16), granted=False)
            self._write(slot, wanted)
        claim = Claim(slot, self.root_id, self.place, wanted.epoch, wanted.nonce)
        (taken,) = state.take([claim], ttl_seconds)
        self._write(slot, _Epoch(taken.epoch, taken.nonce, granted=True))
        return taken

    def _read(self, slot: int) -> _Epoch | None:
        path = self.layout.epoch(slot)
        try:
            content = read_own(path)
        except FileNotFoundError:
            return None
        with suppress(*UNREADABLE_JSON):
            found = msgspec.json.decode(content, type=_Epoch)
            if 1 <= found.epoch <= HIGHEST_EPOCH and _NONCE.fullmatch(found.nonce):
                return found
        target = set_aside(path, self.layout)
        log.error(
            "%s was damaged and was moved to %s; which epochs of slot %d this folder knows is lost",
            path,
            target,
            slot,
        )
        return None

    def _write(self, slot: int, epoch: _Epoch) -> None:
        path = self.layout.epoch(slot)
        make_dirs(path.parent)
        write_durably(path, msgspec.json.encode(epoch))
