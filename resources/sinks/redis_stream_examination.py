"""Examines a Redis server for `fuploader doctor`: whether entries of a stream stay there.

What must always hold: a finding that may cost rows is said. The receipt on our disk says that rows
are stored, so nobody stores them again if the server loses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.resources.states.redis_examination import eviction, failed_saves, role


def judge(info: Mapping[str, Any] | None) -> Iterator[Diagnosis]:
    """Findings from `INFO` (None where we may not ask)."""
    if info is None:
        found = "memory and persistence are unknown: the user may not ask for INFO"
        yield Diagnosis("sink server", "good", found)
        return
    yield role(info, "sink server")
    yield eviction(info)
    yield _persistence(info)


def _persistence(info: Mapping[str, Any]) -> Diagnosis:
    if failed := failed_saves(info):
        return failed
    if int(info.get("aof_enabled", 0)):
        return Diagnosis("persistence", "good", "append-only file")
    return Diagnosis(
        "persistence",
        "warning",
        "appendonly no: if the server ends, entries that were added since its last snapshot are "
        "lost, and nothing adds them again",
        "set appendonly yes",
    )
