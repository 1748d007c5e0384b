"""Ships sealed slots, again and again, beside a `fuploader drain`: the whole way without Dagster.

`python -m benchmarks.programs.shipper fuploader.yaml PIPELINE`; ends with SIGTERM.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fuploader_dagster.delivery.attempts import Failed
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.settings.loading import load_pipelines

PAUSE_SECONDS = 0.05


def main() -> None:
    settings = load_pipelines(Path(sys.argv[1]))[sys.argv[2]]
    store = settings.store.open()
    while True:
        outcomes = list(ship(settings, store))
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                sys.exit(f"{outcome.partition}: {outcome.error}")
        if not outcomes:
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
