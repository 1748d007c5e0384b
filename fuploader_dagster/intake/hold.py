"""Hold: a worker sees within a second that somebody has paused the intake of its pipeline."""

from __future__ import annotations

import logging
import math
import time

from fuploader_dagster.contracts.state import StateStore
from fuploader_dagster.control.wishes import Wish, known
from fuploader_dagster.disk.layout import Layout

LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


class Hold:
    """What is wanted of the intake, for one worker. `obeyed`: false for one that is told not to."""

    def __init__(self, layout: Layout, *, obeyed: bool) -> None:
        self._layout = layout
        self._obeyed = obeyed
        self._looked_at = -math.inf
        self._wish = Wish()

    def paused(self, state: StateStore) -> bool:
        """Whether the intake is paused. Looks about once a second: one round trip."""
        now = time.monotonic()
        if self._obeyed and now - self._looked_at >= LOOK_SECONDS:
            before, self._wish = self._wish, known(self._layout, state).intake
            self._looked_at = now
            if before != self._wish:
                log.info(
                    "the intake %s %s", "is paused" if self._wish.paused else "runs", self._wish
                )
        return self._wish.paused
