"""How long a worker pauses after trouble, and its supervisor before it starts another worker."""

from __future__ import annotations

import random

from fuploader_dagster.errors import FuploaderError, SlotInUse

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
HANDOVER_PAUSE_SECONDS = 0.25
STANDBY_PAUSE_SECONDS = 1.0
HANDOVER_TRIES = 40


def pause_after(error: FuploaderError, troubles: int) -> float:
    """How long to pause after this error, the last of `troubles` in a row.

    A slot that another process holds is retried quickly: that process is usually about to exit.
    """
    if isinstance(error, SlotInUse):
        return HANDOVER_PAUSE_SECONDS if troubles < HANDOVER_TRIES else STANDBY_PAUSE_SECONDS
    return growing_pause(troubles, random.random())  # noqa: S311  jitter, no secret


def growing_pause(troubles: int, jitter: float) -> float:
    """How long to pause after `troubles` in a row; `jitter` from 0 to 1."""
    pause = FIRST_PAUSE_SECONDS * 2.0 ** min(troubles - 1, 16)
    return min(pause, LONGEST_PAUSE_SECONDS) * (0.75 + jitter / 2)
