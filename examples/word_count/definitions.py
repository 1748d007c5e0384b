"""Counts the words in archived documents: an asset downstream of `uploaded_archive`.

    cd examples/word_count && dagster dev -f definitions.py

Each partition of `documents/word_counts` reads the archive of the same partition from the store.
Dagster's automation conditions drive both: a sealed slot requests its archive, a stored archive
requests its count. Publish something to count with `fuploader publish`, or see the test.
"""

import json
from collections import Counter

import dagster as dg

from fuploader_dagster import (
    EmbeddedQueue,
    Local,
    Names,
    Pipeline,
    SqliteState,
    build_definitions,
    open_partition,
)

documents = Pipeline(
    name="documents",
    source=EmbeddedQueue(path="data/queue"),
    state=SqliteState(path="data/state.sqlite"),
    store=Local(path="data/object-store"),
    seal_age_seconds=20,
    runs_by="automation",
)
names = Names.of(documents)


@dg.asset(
    key=names.asset("word_counts"),
    deps=[names.uploaded_archive],
    partitions_def=names.partitions(),
    group_name=names.scope,
    automation_condition=dg.AutomationCondition.on_missing(),
)
def word_counts(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """How often each word is in the documents of a partition's archive."""
    words: Counter[str] = Counter()
    with open_partition(documents, context.partition_key) as archive:
        for _, content in archive.payloads(lambda name: name.endswith(".json")):
            words.update(json.loads(content)["text"].split())
    return dg.MaterializeResult(
        metadata={"words": words.total(), "most_common": dict(words.most_common(10))}
    )


defs = dg.Definitions.merge(
    dg.Definitions(
        assets=[word_counts],
        sensors=[
            dg.AutomationConditionSensorDefinition(
                "word_counts_automation",
                target=dg.AssetSelection.assets(word_counts.key),
                default_status=dg.DefaultSensorStatus.RUNNING,
            )
        ],
    ),
    build_definitions(documents),
)
