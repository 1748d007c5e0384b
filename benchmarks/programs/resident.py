"""The memory of a program under measurement."""

from __future__ import annotations

from pathlib import Path


def resident_bytes(name: str) -> int:
    """`VmRSS`: resident memory of this process now; `VmHWM`: the most that it ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
