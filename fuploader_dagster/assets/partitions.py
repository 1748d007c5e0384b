"""Names and partitions of a pipeline in Dagster, and which keys go into which run.

One run takes many slots, as a contiguous range of the partition set. (Dagster lists dynamic
partitions in the order in which they were added, and reads a run's range in that order.)
"""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Intake, Pipeline

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
PARTITION_TAG = "dagster/partition"
PIPELINE_TAG = "fuploader/pipeline"
SHIP_TAG = "fuploader/ship"
"""On each run that packs and uploads: a limit on it leaves other jobs a place in the run queue."""
PRIORITY_TAGS = {"dagster/priority": "10"}
"""Of jobs that a person waits for: Dagster starts them before the others in the run queue."""
UNFINISHED_RUNS = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_QUIET_CONSOLE = {"loggers": {"console": {"config": {"log_level": "WARNING"}}}}
"""The code server's console shows only trouble; the UI shows every event of a run."""

_RANGE_KEPT_SECONDS = 60

_SINK = "sink_"
_MARKS = {"_": "u", "-": "d", ".": "p"}
_MARKED = re.compile(r"(.*)_x([udp]+)")


@dataclass(frozen=True)
class _Asset:
    """The key of one of the pipeline's assets."""

    name: str

    def __get__(self, names: Names, _: type[Names]) -> dg.AssetKey:
        return names.asset(self.name)


@dataclass(frozen=True)
class _Scoped:
    """A name that begins with pipeline and node."""

    ending: str

    def __get__(self, names: Names, _: type[Names]) -> str:
        return f"{names.scope}_{self.ending}"


@dataclass(frozen=True)
class Names:
    """What a pipeline's objects are called in Dagster. The names include the node if one is set."""

    pipeline: str
    node: str | None = None

    @classmethod
    def of(cls, pipeline: Intake) -> Names:
        node = node_in_names(pipeline.node_id) if pipeline.node_id else None
        return cls(pipeline.name, node)

    @property
    def scope(self) -> str:
        return f"{self.pipeline}_{self.node}" if self.node else self.pipeline

    def asset(self, name: str) -> dg.AssetKey:
        return dg.AssetKey([self.pipeline, *([self.node] if self.node else []), name])

    queue = _Asset("queue")
    dead_letters = _Asset("dead_letters")
    sealed_slot = _Asset("sealed_slot")
    processed_slot = _Asset("processed_slot")
    """Only of pipelines that have a processor."""
    packed_archive = _Asset("packed_archive")
    uploaded_archive = _Asset("uploaded_archive")

    @property
    def archives(self) -> tuple[dg.AssetKey, dg.AssetKey]:
        return self.packed_archive, self.uploaded_archive

    def sink(self, name: str) -> dg.AssetKey:
        """The rows in a sink of the pipeline."""
        return self.asset(f"{_SINK}{name}")

    def is_sink(self, asset: dg.AssetKey) -> bool:
        """Whether it is a sink of the pipeline, or was one."""
        return self.is_ours(asset) and asset.path[-1].startswith(_SINK)

    def is_ours(self, asset: dg.AssetKey) -> bool:
        """Whether it is an asset of the pipeline on this node, or was one."""
        return asset == self.asset(asset.path[-1])

    def is_made_by_runs(self, asset: dg.AssetKey) -> bool:
        """Whether runs of the pipeline make this asset."""
        return asset in (self.processed_slot, *self.archives) or self.is_sink(asset)

    @property
    def reachable_check(self) -> dg.AssetCheckKey:
        return dg.AssetCheckKey(self.uploaded_archive, "store_reachable")

    partition_set = _Scoped("slots")
    store = _Scoped("store")
    """The resource key of the object store."""
    archives_resource = _Scoped("archives")
    """Of the `ArchiveReader`, the IO manager of the archives."""
    queue_resource = _Scoped("queue")
    state_resource = _Scoped("state")
    drain_sensor = _Scoped("drain")
    alert_sensor = _Scoped("alerts")
    watch_schedule = _Scoped("watch")
    ship_job = _Scoped("ship")
    seal_job = _Scoped("seal_now")
    replay_job = _Scoped("replay")
    repack_job = _Scoped("repack")
    scrub_job = _Scoped("scrub")
    pause_job = _Scoped("pause")
    resume_job = _Scoped("resume")
    requeue_job = _Scoped("dead_letters_requeue")
    export_letters_job = _Scoped("dead_letters_export")
    discard_job = _Scoped("dead_letters_discard")
    find_job = _Scoped("find")

    @property
    def jobs(self) -> tuple[str, ...]:
        others = (self.seal_job, self.scrub_job, self.pause_job, self.resume_job, self.find_job)
        letters = (self.requeue_job, self.export_letters_job, self.discard_job)
        return (self.ship_job, self.replay_job, self.repack_job, *others, *letters)

    @property
    def instigators(self) -> tuple[str, ...]:
        """Sensors and schedules."""
        others = ("failures", "automation", "recovery", "retention", "scrub_schedule")
        first = (self.drain_sensor, self.alert_sensor, self.watch_schedule)
        return (*first, *(f"{self.scope}_{one}" for one in others))

    def partitions(self) -> dg.DynamicPartitionsDefinition:
        return SlotPartitions(name=self.partition_set)


class SlotPartitions(dg.DynamicPartitionsDefinition):
    """A pipeline's partition set, which remembers the keys of the last range for a minute.

    Dagster looks up the run's range for each partition to which a step adds metadata, and reads the
    whole set each time: 64 times 100,000 keys in one step, most of a minute. An existing range gets
    no new keys (they are added at the end), and a key that retention folds away meanwhile does no
    harm: its slot is shipped, and the run says so.
    """

    def get_partition_keys_in_range(
        self, partition_key_range: dg.PartitionKeyRange
    ) -> Sequence[str]:
        with dg.partition_loading_context() as context:
            store = context.dynamic_partitions_store
        last: _LastRange | None = self.__dict__.get("_last_range")
        if last and last.is_of(store, partition_key_range):
            return last.keys
        keys = super().get_partition_keys_in_range(partition_key_range)
        if store is not None:
            last = _LastRange(weakref.ref(store), partition_key_range, keys, time.monotonic())
            self.__dict__["_last_range"] = last
        return keys


@dataclass(frozen=True)
class _LastRange:
    store: weakref.ref[object]
    range: dg.PartitionKeyRange
    keys: Sequence[str]
    read_at: float

    def is_of(self, store: object, key_range: dg.PartitionKeyRange) -> bool:
        fresh = time.monotonic() - self.read_at < _RANGE_KEPT_SECONDS
        return fresh and self.range == key_range and store is not None and self.store() is store


def made_assets(pipeline: Pipeline) -> dg.AssetSelection:
    """The assets that runs of this pipeline make."""
    names = Names.of(pipeline)
    processed = (names.processed_slot,) if pipeline.process is not None else ()
    sinks = (names.sink(name) for name in pipeline.sinks)
    return dg.AssetSelection.assets(*processed, *names.archives, *sinks)


def slots_per_run(pipeline: Pipeline) -> int:
    """How many partitions one run takes at most."""
    if pipeline.process is None:
        return pipeline.partitions_per_run
    return min(pipeline.partitions_per_run, pipeline.process.partitions_per_run)


def node_in_names(node_id: str) -> str:
    """The node's id in the characters that Dagster allows in names: letters, digits, underscores.

    Two ids never give one name: an instance that they share would take the runs and partitions of
    one machine for those of the other. So an id with dashes or dots gets an ending that says what
    each underscore was: `node-1` is `node_1_xd`, `node_id-10.0.0.1` is `node_id_10_0_0_1_xudppp`.
    All other ids stay as they are. Raises `ConfigError` for an id that looks like such a name
    itself, or has `...` in it.
    """
    if "..." in node_id:  # Dagster refuses it in the key of a partition, at each tick
        raise ConfigError(
            f"node_id {node_id!r} contains '...', which Dagster reserves for ranges of partitions",
            hint="give this node another id",
        )
    if not set(node_id) & {"-", "."}:
        if (match := _MARKED.fullmatch(node_id)) and _may_be_folded(*match.groups()):
            raise ConfigError(
                f"node_id {node_id!r} looks like the name in Dagster of a node whose id contains "
                f"'-' or '.'",
                hint="give this node another id",
            )
        return node_id
    marks = "".join(_MARKS[character] for character in node_id if character in _MARKS)
    return f"{re.sub('[-.]', '_', node_id)}_x{marks}"


def _may_be_folded(folded: str, marks: str) -> bool:
    return folded.count("_") == len(marks) and set(marks) != {_MARKS["_"]}


def chunks(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The keys in runs of at most `size`."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def contiguous_ranges(
    keys: Sequence[str], all_keys: Sequence[str], size: int
) -> Iterator[Sequence[str]]:
    """The keys as ranges of neighbours in the partition set, each of at most `size`.

    Keys that are not in the set are left out: no run can ask for them.
    """
    wanted = set(keys)
    gathered: list[str] = []
    for key in all_keys:
        if key in wanted:
            gathered.append(key)
        if gathered and (key not in wanted or len(gathered) == size):
            yield gathered
            gathered = []
    if gathered:
        yield gathered


def run_request(
    names: Names, keys: Sequence[str], *, run_key: str, assets: Sequence[dg.AssetKey] | None = None
) -> dg.RunRequest:
    """A run for neighbouring keys of the partition set; of these assets, or of all in its job."""
    return dg.RunRequest(
        run_key=run_key,
        asset_selection=assets,
        run_config=_QUIET_CONSOLE,
        tags={
            RANGE_START_TAG: keys[0],
            RANGE_END_TAG: keys[-1],
            PIPELINE_TAG: names.scope,
        },
    )


def keys_of_run(tags: Mapping[str, str], all_keys: Sequence[str]) -> Sequence[str]:
    """Which partitions a run handles, read from its tags."""
    if PARTITION_TAG in tags:
        return [tags[PARTITION_TAG]]
    start, end = tags.get(RANGE_START_TAG), tags.get(RANGE_END_TAG)
    if start not in all_keys or end not in all_keys:
        return []
    return all_keys[all_keys.index(start) : all_keys.index(end) + 1]


def partitions_of_run(context: dg.OpExecutionContext) -> Sequence[str]:
    """The partitions that a job was launched for; none if it was launched without any."""
    launched = context.has_partition_key or context.has_partition_key_range
    return context.partition_keys if launched else ()
