"""Counts the words in archived documents: an asset downstream of `uploaded_archive`.

    cd examples/word_count && dagster dev -f definitions.py

Each partition of `documents/word_counts` has the archive of the same partition as its input, whose
annotation asks for rows: the object of JSON in each file.
Dagster's automation conditions drive both: a sealed slot requests its archive, a stored archive
requests its count. Publish something to count with `fuploader publish`, or see the test.
"""

from collections import Counter
from typing import Any

import dagster as dg

from fuploader_dagster import (
    EmbeddedQueue,
    Local,
    Names,
    Pipeline,
    SqliteState,
    build_definitions,
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
    ins={"rows": dg.AssetIn(names.uploaded_archive)},
    partitions_def=names.partitions(),
    group_name=names.scope,
    automation_condition=dg.AutomationCondition.on_missing(),
)
def word_counts(rows: list[dict[str, Any]]) -> dg.MaterializeResult:
    """How often each word is in the documents of a partition's archive."""
    words: Counter[str] = Counter()
    for row in rows:
        words.update(row["text"].split())
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
