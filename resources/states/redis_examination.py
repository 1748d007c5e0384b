"""Examines a Redis server for `fuploader doctor`: what may happen to our keys.

If the keys of a state are lost, no message is: counts and the list of sealed slots are rebuilt from
the disk. But until then a tick registers nothing, and two machines with one name would not notice
each other. Entries that a stream loses are lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fuploader_dagster.contracts.diagnosis import Diagnosis

_MEMORY_WARNING = 0.9
"""Part of maxmemory. A pipeline's keys take a few kilobytes: it is others who fill it."""


def judge(info: Mapping[str, Any] | None, save: str | None) -> list[Diagnosis]:
    """Findings from `INFO` and `CONFIG GET save` (None where we may not ask)."""
    if info is None:
        found = "memory and persistence are unknown: the user may not ask for INFO"
        return [Diagnosis("state server", "good", found)]
    return [_role(info, "state server"), _eviction(info), _persistence(info, save)]


def judge_stream(info: Mapping[str, Any] | None, check: str, lost: str) -> Iterator[Diagnosis]:
    """Findings about a server that has a stream. `lost`: what becomes of entries that it loses."""
    if info is None:
        found = "memory and persistence are unknown: the user may not ask for INFO"
        yield Diagnosis(check, "good", found)
        return
    yield _role(info, check)
    yield _eviction(info)
    if failed := _failed_saves(info):
        yield failed
    elif int(info.get("aof_enabled", 0)):
        yield Diagnosis("persistence", "good", "append-only file")
    else:
        yield Diagnosis(
            "persistence",
            "warning",
            "appendonly no: if the server ends, entries that were added since its last snapshot "
            f"are lost, and {lost}",
            "set appendonly yes",
        )


def _role(info: Mapping[str, Any], check: str) -> Diagnosis:
    cluster = ", node of a cluster" if info.get("cluster_enabled") else ""
    found = f"Redis {info.get('redis_version', '?')}, {info.get('role', 'master')}{cluster}"
    if info.get("role") == "slave":
        return Diagnosis(
            check, "wrong", found, "name the master in the url: a replica refuses writes"
        )
    return Diagnosis(check, "good", found)


def _eviction(info: Mapping[str, Any]) -> Diagnosis:
    policy, limit = str(info.get("maxmemory_policy", "?")), int(info.get("maxmemory", 0))
    found = f"maxmemory-policy {policy}, maxmemory {f'{limit:,} bytes' if limit else 'not limited'}"
    if limit and policy.startswith("allkeys"):
        return Diagnosis(
            "eviction",
            "warning",
            f"{found}: Redis may evict our keys when memory is short",
            "set maxmemory-policy noeviction, or give the pipeline a Redis of its own",
        )
    used = int(info.get("used_memory", 0))
    if limit and used > _MEMORY_WARNING * limit:
        return Diagnosis(
            "eviction",
            "warning",
            f"{found}, of which {used:,} are used: the server will soon refuse our writes",
            "raise maxmemory, remove other data, or give the pipeline a Redis of its own",
        )
    return Diagnosis("eviction", "good", found)


def _persistence(info: Mapping[str, Any], save: str | None) -> Diagnosis:
    appending = bool(int(info.get("aof_enabled", 0)))
    if failed := _failed_saves(info):
        return failed
    if appending:
        return Diagnosis("persistence", "good", "append-only file")
    if save:
        return Diagnosis("persistence", "good", f"snapshots ({save})")
    if save is None:
        return Diagnosis("persistence", "good", "unknown: the user may not ask for it")
    return Diagnosis(
        "persistence",
        "warning",
        "none: the server is empty after a restart",
        "no message is lost, but counts start again at zero; set appendonly yes to keep them",
    )


def _failed_saves(info: Mapping[str, Any]) -> Diagnosis | None:
    failed = [
        name
        for name in ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status")
        if info.get(name, "ok") != "ok"
    ]
    if not failed:
        return None
    return Diagnosis(
        "persistence",
        "wrong",
        f"the last write to its disk failed ({', '.join(failed)}); it may refuse our writes",
        "check the server's log and its disk",
    )
