"""How many cores this process may use: what its affinity and the CPU quotas of its cgroups allow.

A container's quota does not show in the number of processors that Python reports, nor in the
affinity: 64 children with a quota of one core would only take each other's time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def available_cores(root: Path = Path("/")) -> int:
    """At least 1. A quota of one core and a half counts as two. `root` has `proc` and `sys`."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    quota = min(_quotas(root), default=math.inf)
    return max(1, cores if math.isinf(quota) else min(cores, math.ceil(quota)))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of the process's cgroups and of all above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    top = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2, also beside version 1
            for folder in _upwards([top, top / "unified"], path):
                yield from _quota(folder / "cpu.max")
        elif "cpu" in controllers.split(","):
            for folder in _upwards([top / "cpu", top / controllers], path):
                yield from _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _upwards(tops: list[Path], path: str) -> Iterator[Path]:
    """A cgroup's folders, from its own to the top. In a container only the top may be there."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for top in tops:
        for length in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:length])


def _quota(*files: Path) -> Iterator[float]:
    """Quota and period, in one file or two; nothing if there is no quota."""
    with suppress(OSError, ValueError):
        quota, period = " ".join(file.read_text() for file in files).split()
        if quota != "max" and float(quota) > 0 and float(period) > 0:
            yield float(quota) / float(period)
