"""Archives of other nodes, by their partition key: of those no receipt is on this machine.

Their keys are made by the pipeline's template. Where that has fields of messages (`split_by`), or
the key is made by a function, nobody here knows these: the archive is looked for in the catalog,
and then, for a template, in a listing of what its known beginning leads to.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import timezone

from fuploader_dagster.catalog.catalog import Catalog, CatalogUnusable
from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.disk.layout import REDO_MARK, PartitionKey
from fuploader_dagster.settings.archive_formats import ALL_SUFFIXES
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import known_prefix, object_key

log = logging.getLogger(__name__)


def key_of_another_node(
    partition: PartitionKey, pipeline: Pipeline, store: ObjectStore
) -> str | None:
    """The key of the partition's archive in this store; of several, that of the latest redo."""
    if isinstance(pipeline.key, str) and not pipeline.split_by:
        made = dict.fromkeys(_made(partition, pipeline))
        found = next((key for key in made if store.head(key)), None)
        if found is not None:
            return found
    known = [key for key in _cataloged(str(partition), pipeline, store) if store.head(key)]
    if not known and isinstance(pipeline.key, str) and pipeline.split_by:
        known = _listed(partition, pipeline, store)
    return max(known, key=lambda key: (key.partition(REDO_MARK)[2], key), default=None)


def how_to_find(pipeline: Pipeline) -> str:
    """What to do about an archive that was not found: keys of this pipeline do not lead to it."""
    if not isinstance(pipeline.key, str):
        return (
            f"keys of {pipeline.name} are made by a function: run `fuploader catalog rebuild` "
            f"here, or give the address of the archive"
        )
    return ""


def _made(partition: PartitionKey, pipeline: Pipeline) -> Iterator[str]:
    for zone in (pipeline.zone, timezone.utc):  # the latter before `timezone` was set
        for suffix in (pipeline.archive_suffix, *ALL_SUFFIXES):  # it may be of an earlier format
            yield object_key(
                pipeline.key,
                pipeline=pipeline.name,
                partition=partition,
                archive=f"{partition}{suffix}",
                zone=zone,
            )


def _cataloged(partition: str, pipeline: Pipeline, store: ObjectStore) -> list[str]:
    if not pipeline.layout.catalog.exists():
        return []
    try:
        with Catalog.to_read(pipeline.layout.catalog) as catalog:
            found = [one for one in catalog.archives().values() if one.partition == partition]
    except CatalogUnusable as error:
        log.warning("%s; %s is looked for without it", error.message, partition)
        return []
    return [one.key for one in found if store.address(one.key) == one.address]


def _listed(partition: PartitionKey, pipeline: Pipeline, store: ObjectStore) -> list[str]:
    named = re.compile(rf"(?<![\w-]){re.escape(str(partition))}(?!\d)")
    prefixes = {
        known_prefix(pipeline.key, pipeline=pipeline.name, partition=partition, zone=zone)
        for zone in (pipeline.zone, timezone.utc)
    }
    return [
        info.key
        for prefix in sorted(prefixes)
        for info in store.list(prefix)
        if named.search(info.key)
    ]
