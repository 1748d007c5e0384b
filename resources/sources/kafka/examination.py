"""Examines topics and group for `fuploader doctor`: there, readable, read in time, and kept.

What must always hold: nobody joins the group, and no offset changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.resources.sources.kafka.cluster import Cluster, Place, Topic, lag_of, text_of

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.kafka.settings import Kafka

_MOST_NAMED = 5


def examine(settings: Kafka) -> Iterator[Diagnosis]:
    """Raises an error of this package if the check cannot go on."""
    cluster = Cluster(settings)
    try:
        topics = cluster.topics(rights=True)
        places = [place for topic in topics.values() for place in topic.places]
        committed = cluster.committed()
        oldest = cluster.offsets(places, oldest=True)
        ends = cluster.offsets(places, oldest=False)
        lag = lag_of(
            places,
            committed,
            oldest,
            ends,
            from_oldest=settings.auto_offset_reset == "earliest",
        )
        yield _queue(settings, topics, sum(lag.values()))
        yield from _rights(topics)
        yield from _offsets(committed, oldest, ends)
        yield from _replicas(topics)
        yield from _members(settings, cluster, len(places))
    finally:
        cluster.close()


def _queue(settings: Kafka, topics: Mapping[str, Topic], waiting: int) -> Diagnosis:
    partitions = sum(len(topic.replicas) for topic in topics.values())
    found = (
        f"{settings.describe()}: {counted(waiting, 'message waits', 'messages wait')} in "
        f"{counted(partitions, 'partition')}"
    )
    missing = [name for name in settings.names if name not in topics]
    if missing and not settings.declare:
        return Diagnosis(
            "queue",
            "wrong",
            f"{found}, and there is no topic {', '.join(missing)}",
            "create it, or set declare: true; is its name right?",
        )
    if missing:
        return Diagnosis("queue", "good", f"{found}; {', '.join(missing)} will be created")
    if not topics:
        return Diagnosis(
            "queue",
            "warning",
            f"{found}: no topic matches the pattern",
            "check the pattern; topics that come later are read too",
        )
    return Diagnosis("queue", "good", found)


def _rights(topics: Mapping[str, Topic]) -> Iterator[Diagnosis]:
    closed = [
        one.name
        for one in topics.values()
        if one.operations is not None and not one.operations & {"READ", "ALL"}
    ]
    if closed:
        yield Diagnosis(
            "rights",
            "wrong",
            f"the user may not read {_some(closed)}",
            "give it the rights listed in docs/kafka.md",
        )


def _offsets(
    committed: Mapping[Place, int], oldest: Mapping[Place, int], ends: Mapping[Place, int]
) -> Iterator[Diagnosis]:
    """Offsets that were committed for messages that are not there."""
    removed = {
        place: oldest[place] - offset
        for place, offset in committed.items()
        if place in oldest and offset < oldest[place]
    }
    if removed:
        yield Diagnosis(
            "retention",
            "wrong",
            f"Kafka removed up to {counted(sum(removed.values()), 'message')} that nobody "
            "had read, of "
            f"{_some([text_of(place) for place in removed])}",
            "raise retention.ms or retention.bytes of the topic, and find out why the drain was "
            "behind",
        )
    beyond = [place for place, offset in committed.items() if offset > ends.get(place, offset)]
    if beyond:
        yield Diagnosis(
            "offsets",
            "warning",
            f"the group has read further than {_some([text_of(place) for place in beyond])} goes",
            "was the topic created again? It is read from its oldest message then",
        )


def _replicas(topics: Mapping[str, Topic]) -> Iterator[Diagnosis]:
    single = [one.name for one in topics.values() if one.replicas and min(one.replicas) < 2]
    if single:
        yield Diagnosis(
            "replicas",
            "warning",
            f"{_some(single)} is kept by one broker only: messages are lost with its disk",
            "give the topic three replicas, and min.insync.replicas=2",
        )


def _members(settings: Kafka, cluster: Cluster, partitions: int) -> Iterator[Diagnosis]:
    try:
        group = cluster.group()
    except SourceUnavailable as error:
        if "GROUP_ID_NOT_FOUND" in error.message:  # nobody was in it yet
            return
        raise
    members = list(group.members)
    if partitions and len(members) > partitions:
        yield Diagnosis(
            "partitions",
            "warning",
            f"{counted(len(members), 'worker shares', 'workers share')} "
            f"{counted(partitions, 'partition')}: "
            f"{len(members) - partitions} have nothing to do",
            "give the topic more partitions, or set process_count lower",
        )
    foreign = [one.client_id for one in members if one.client_id != f"fuploader-{settings.group}"]
    if foreign:
        yield Diagnosis(
            "other members",
            "wrong",
            f"other programs are in group {settings.group}: {_some(foreign)}; they get messages "
            "that are then missing here",
            "set a group that only this pipeline uses",
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
