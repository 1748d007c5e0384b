"""What a result file says about the machine and the software it was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "fuploader-dagster",
    "FUploader",
    "dagster",
    "pika",
    "aio-pika",
    "aiohttp",
    "celery",
    "msgspec",
    "isal",
    "xxhash",
    "zstandard",
    "redis",
    "boto3",
    "swift",
)


def describe() -> dict[str, Any]:
    """Date, machine size and versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": _first("/proc/cpuinfo", "model name"),
            "memory_gib": round(int(_first("/proc/meminfo", "MemTotal").split()[0]) / (1 << 20), 1),
            "system": f"{platform.system()} {platform.release()}",
            "load_at_start": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "python": sys.version.split()[0],
            **{package: version(package) for package in _PACKAGES},
            "redis-server": _said("redis-server", "--version"),
            "rabbitmq-server": _said("dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server"),
            "zstd": _said("zstd", "--version"),
            "tar": _said("tar", "--version"),
        },
        "commit": _said("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
    }


def _first(path: str, name: str) -> str:
    """The first value of a name in a file of `name : value` lines."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _said(*command: str) -> str:
    """The first line that a program prints; "unknown" where it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]
