"""`python -m tests.soak --seconds 60 --seed 7`: the last line of stdout is JSON, see `soak`.

Exit code 0 when nothing was lost, nothing is there twice or corrupt, and no dead letter is there
that should not be; the same seed gives the same messages and the same sequence of kills.

Stopped by SIGTERM, Ctrl-C or the end of its terminal, it ends whatever it started, says in the last
line how far it was, and exits with 128 and the number of the signal.
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

from tests.servers.dagster_part import end, processes_in
from tests.soak.queues import QUEUES
from tests.soak.soak import Progress, broken_promises, soak

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody does not want to wait for the end."""


def stop(number: int, _frame: object) -> None:
    """Leave whatever is being done, once: the next signal must not disturb the clearing up."""
    for each in STOPPING:
        signal.signal(each, lambda *_: None)
    raise Stopped(signal.Signals(number))


def stop_again(ignored: sys.UnraisableHookArgs) -> None:
    """What is raised in a destructor Python prints and drops; a signal there comes once more."""
    if isinstance(ignored.exc_value, Stopped):
        number = ignored.exc_value.args[0]
        signal.signal(signal.SIGALRM, lambda _, frame: stop(number, frame))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(ignored)


def listen() -> None:
    """Have the signals that stop raise `Stopped`, wherever the program is."""
    sys.unraisablehook = stop_again
    for each in STOPPING:
        if signal.getsignal(each) is not signal.SIG_IGN:  # nohup, or a job in the background
            signal.signal(each, stop)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=60, help="how long to kill")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--source", choices=sorted(QUEUES), default="rabbitmq", help="the queue")
    parser.add_argument("--rate", type=int, default=200, help="messages a second")
    parser.add_argument("--pause", type=float, default=8, help="seconds between kills, on average")
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    options = parser.parse_args()
    listen()
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"folder {folder}", file=sys.stderr, flush=True)
    progress = Progress()
    try:
        result = soak(
            options.seed,
            options.seconds,
            rate=options.rate,
            pause_seconds=options.pause,
            folder=folder,
            progress=progress,
            source=options.source,
        )
    except Stopped as stopped:
        end(processes_in(folder))  # a server was being started, and nobody had it in hand yet
        signal_: signal.Signals = stopped.args[0]
        state = {"stopped_by": signal_.name, "seed": options.seed, "folder": str(folder)}
        print(json.dumps({**state, **vars(progress)}))
        return 128 + signal_
    broken = broken_promises(result)
    if broken:
        print(f"broken: {', '.join(broken)}; logs and data are in {folder}", file=sys.stderr)
    elif not options.keep:
        shutil.rmtree(folder)
    print(json.dumps(result))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
