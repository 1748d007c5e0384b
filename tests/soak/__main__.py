"""`python -m tests.soak --seconds 60 --seed 7`: the last line of stdout is JSON, see `soak`.

Exit code 0 when nothing was lost, nothing is there twice or corrupt, and no dead letter is there
that should not be; the same seed gives the same messages and the same sequence of kills.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.soak.soak import broken_promises, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=60, help="how long to kill")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--rate", type=int, default=200, help="messages a second")
    parser.add_argument("--pause", type=float, default=8, help="seconds between kills, on average")
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # and so ends what it started
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"folder {folder}", file=sys.stderr, flush=True)
    result = soak(
        options.seed,
        options.seconds,
        rate=options.rate,
        pause_seconds=options.pause,
        folder=folder,
    )
    broken = broken_promises(result)
    if broken:
        print(f"broken: {', '.join(broken)}; logs and data are in {folder}", file=sys.stderr)
    elif not options.keep:
        shutil.rmtree(folder)
    print(json.dumps(result))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
