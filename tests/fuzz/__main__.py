"""`python -m tests.fuzz --inputs 1000000 --seed 7`: the last line of stdout is JSON, per target.

The inputs are shared out over the targets and go through them in portions, each in a process of its
own: hypothesis remembers what it tried, and the memory of a portion is measured and bounded.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS

PORTION = 25_000
ADDRESS_SPACE_BYTES = 2 * 2**30


def portions(inputs: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """Target, number of inputs, seed."""
    shares = sum(target.share for target in TARGETS.values())
    for name, target in TARGETS.items():
        left = max(1, inputs * target.share // shares)
        number = 0
        while left > 0:
            yield name, min(PORTION, left), seed * 1_000_000 + number
            left -= PORTION
            number += 1


def in_a_process(portion: tuple[str, int, int]) -> tuple[str, dict[str, Any] | None]:
    """The counts of a portion; None if it failed, which it said on stderr."""
    name, inputs, seed = portion
    arguments = ["--target", name, "--inputs", str(inputs), "--seed", str(seed)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return name, json.loads(done.stdout) if done.returncode == 0 else None


def added_up(found: list[dict[str, Any]]) -> dict[str, Any]:
    total = {key: sum(one[key] for one in found) for key in ("inputs", "accepted", "refused")}
    return {
        **total,
        "seconds": round(sum(one["seconds"] for one in found), 1),
        "peak_mib": max((one["peak_mib"] for one in found), default=0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--target", choices=list(TARGETS), help="only this one, in this process")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.target:
        logging.disable()  # what is passed over is logged, each time
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        print(json.dumps(fuzz(options.target, options.inputs, options.seed)))
        return 0
    print(f"seed {options.seed}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in TARGETS}
    failed = 0
    with ThreadPoolExecutor(options.processes) as threads:
        for name, counts in threads.map(in_a_process, portions(options.inputs, options.seed)):
            failed += counts is None
            found[name] += [counts] if counts else []
    targets = {name: added_up(some) for name, some in found.items()}
    whole = added_up(list(targets.values()))
    print(json.dumps({**whole, "failed": failed, "seed": options.seed, "targets": targets}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
