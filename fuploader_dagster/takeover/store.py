"""FUploader's archives in the object store: found by their names, read back whole.

FUploader records nothing about what it stored. But its archives have names of a form that nobody
else uses, with the time of packing in them: `20261120_234501_123456_1a2b3c4d.tar.zst`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from pathlib import Path

from fuploader_dagster.archives.foreign import verify_whole
from fuploader_dagster.archives.ranges import StoredArchive
from fuploader_dagster.contracts.object_store import ObjectInfo, ObjectStore
from fuploader_dagster.disk.file_digest import digest_of
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import DamagedArchive, PermanentError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import object_key
from fuploader_dagster.takeover.archives import read_members
from fuploader_dagster.takeover.plan import Content

NEWEST = 64
"""Maximum number of archives to read back. What FUploader had stored and not yet removed when it
died is among the last it stored: one for each of its packing tasks."""
CLOCK_TOLERANCE = timedelta(hours=15)
"""The names have local time, and FUploader may have run in another time zone."""
MOST_DAYS = 40
_NAME = re.compile(r"(\d{8}_\d{6}_\d{6})_[0-9a-f]{8}\.tar\.zst")
_DATES = ("%Y%m%d", "%Y-%m-%d", "%Y/%m/%d", "%Y_%m_%d", "%y%m%d", "%Y-%m", "%Y/%m", "%Y%m", "%Y")


class StoredArchives:
    """Archives of FUploader's in the store: those of these names, and the newest since a time."""

    def __init__(
        self, pipeline: Pipeline, store: ObjectStore, names: Collection[str], *, since: float
    ) -> None:
        """List what is where FUploader can have put archives since that time."""
        self._store = store
        self.looked_at = 0
        """Number of archives whose members were read."""
        since_day = datetime.fromtimestamp(since, tz=timezone.utc) - CLOCK_TOLERANCE
        found: dict[str, ObjectInfo] = {}
        for prefix in _prefixes(pipeline, since_day, datetime.now(tz=timezone.utc)):
            for info in store.list(prefix):
                name = info.key.rpartition("/")[2]
                if name in names or _NAME.fullmatch(name):
                    found[name] = info
        stamp = f"{since_day:%Y%m%d_%H%M%S}"
        new = sorted((n for n in found if _NAME.fullmatch(n) and n >= stamp), reverse=True)
        self._by_name, self._newest = found, [found[name] for name in new[:NEWEST]]

    def holding(self, path: Path) -> str:
        """Address of an object with the name and the bytes of this file; empty if there is none."""
        info = self._by_name.get(path.name)
        if info is None or info.size_bytes != path.stat().st_size:
            return ""
        source = StoredArchive(self._store, info.key, info)
        try:
            verify_whole(source, digest_of(path)[1].hex())
        except DamagedArchive:  # other bytes
            return ""
        return source.address

    def newest_contents(self) -> dict[Content, str]:
        """What the newest archives hold: content to address. Skips archives of another kind."""
        contents = {}
        for info in self._newest:
            source = StoredArchive(self._store, info.key, info)
            try:
                members, _ = read_members(source)
            except (DamagedArchive, PermanentError):
                continue
            self.looked_at += 1
            for name, digest, _ in members:
                contents[(name, digest)] = source.address
        return contents


def _prefixes(pipeline: Pipeline, since: datetime, now: datetime) -> list[str]:
    """Prefixes of the keys of all archives that were stored in that time."""
    if pipeline.takeover.stored_below is not None:
        return [pipeline.takeover.stored_below]
    days = (now.date() - since.date()).days + 2  # FUploader's today may be our tomorrow
    undated = days > MOST_DAYS
    moments = [now] if undated else [since + timedelta(days=day) for day in range(days)]
    found = {_prefix(pipeline, moment, now, undated=undated) for moment in moments}
    return sorted(one for one in found if not any(one != o and one.startswith(o) for o in found))


def _prefix(pipeline: Pipeline, moment: datetime, now: datetime, *, undated: bool) -> str:
    """Prefix of all keys of a day: the day is in the template, or a function asks the clock."""
    keys = [
        object_key(
            pipeline.key,
            pipeline=pipeline.name,
            partition=PartitionKey(moment, pipeline.node, slot, number),
            archive=f"{moment:%Y%m%d}_{rest}.tar.zst",
            zone=pipeline.zone,
        )
        for slot, number, rest in (
            (0, 1, "000000_000000_00000000"),
            (9, 999999, "235959_999999_ffffffff"),
        )
    ]
    prefix = os.path.commonprefix(keys)  # noqa: RUF071  cut at a "/" just below
    prefix = prefix[: prefix.rfind("/") + 1]
    for form in _DATES:
        for day in (moment.astimezone(pipeline.zone), now, now.astimezone()):
            start = prefix.find(day.strftime(form))
            if start >= 0:  # hours and minutes may follow
                return prefix[:start] + ("" if undated else moment.strftime(form))
    return prefix
