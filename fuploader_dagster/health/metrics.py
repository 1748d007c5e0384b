"""Metrics of pipelines in the text format of Prometheus, made of their figures (`figures`).

What must always hold:

- A metric has one meaning for ever; `METRICS` has all of them, and docs/metrics.md, the dashboard
  and the alert rules name no others (a test compares).
- Counters are what is durable (state store, receipts), never what this process counted, so they go
  on after a restart. A figure that cannot be told is left out: Prometheus sees a gap, not a zero.
- Whoever asks often gets the same answer for `FRESH_SECONDS`: a scrape asks a queue and a state
  store. Pipelines are asked at once, and a queue that is silent is given up before Prometheus gives
  up the scrape (10 s by default).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fuploader_dagster.control.wishes import PARTS
from fuploader_dagster.delivery.failures import FailureNotes, all_failures
from fuploader_dagster.delivery.processor_trouble import processor_trouble_of
from fuploader_dagster.delivery.sink_notes import all_sinks
from fuploader_dagster.delivery.store_trouble import known_trouble
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.health.figures import Figures, ask_queue, figures_of
from fuploader_dagster.health.status import ships
from fuploader_dagster.intake.worker_status import Doing
from fuploader_dagster.settings.pipeline import Pipeline

log = logging.getLogger(__name__)

FRESH_SECONDS = 5.0
QUEUE_SECONDS = 4.0
"""How long a queue may take to say what waits in it."""
_AT_ONCE = 8


class Meaning(NamedTuple):
    """What a metric says."""

    kind: Literal["counter", "gauge"]
    help: str
    labels: Sequence[str] = ()
    """Beside `pipeline` and `node`, which all but one have."""


METRICS: Mapping[str, Meaning] = {
    "fuploader_build_info": Meaning("gauge", "1; the version is a label.", ("version",)),
    "fuploader_up": Meaning("gauge", "Whether the figures of the pipeline could be read."),
    "fuploader_available": Meaning(
        "gauge",
        "Whether a part answers and does not refuse us: queue, state, store, processor, or "
        "sink:NAME.",
        ("part",),
    ),
    "fuploader_messages_acknowledged_total": Meaning(
        "counter",
        "Messages taken from the queue for good: stored, known already, or dead letters.",
    ),
    "fuploader_messages_duplicate_total": Meaning(
        "counter", "Messages that were known already, and not stored again."
    ),
    "fuploader_messages_dead_lettered_total": Meaning(
        "counter", "Messages that could not become files."
    ),
    "fuploader_messages_stored_total": Meaning(
        "counter", "Messages in archives that the object store has confirmed."
    ),
    "fuploader_payload_stored_bytes_total": Meaning(
        "counter", "Bytes of these messages, not compressed."
    ),
    "fuploader_archives_stored_total": Meaning("counter", "Archives that the store has confirmed."),
    "fuploader_archives_stored_bytes_total": Meaning("counter", "Bytes of these archives."),
    "fuploader_store_requests_total": Meaning(
        "counter", "Requests to the object store's service for these archives, with retries."
    ),
    "fuploader_queue_messages": Meaning(
        "gauge",
        "Messages in the queue: waiting, or in_hand (with consumers, not settled).",
        ("state",),
    ),
    "fuploader_workers": Meaning(
        "gauge",
        "Drain workers on this node, by what they do; held: the intake is paused by a person, "
        "paused: the disk has no room.",
        ("doing",),
    ),
    "fuploader_active_messages": Meaning("gauge", "Messages in slots that are not sealed yet."),
    "fuploader_unshipped_slots": Meaning(
        "gauge", "Sealed slots whose archive the store has not confirmed."
    ),
    "fuploader_unshipped_messages": Meaning("gauge", "Messages in these slots."),
    "fuploader_unshipped_bytes": Meaning(
        "gauge", "Bytes of these slots, of their results and of archives on the disk."
    ),
    "fuploader_oldest_unshipped_seconds": Meaning(
        "gauge",
        "Age of the oldest slot, active or sealed, that is not stored; 0: none waits.",
    ),
    "fuploader_last_upload_timestamp_seconds": Meaning(
        "gauge", "When the store last confirmed an archive, in seconds since 1970."
    ),
    "fuploader_disk_free_bytes": Meaning("gauge", "Free on the disk of the pipeline."),
    "fuploader_disk_min_free_bytes": Meaning(
        "gauge", "With less than that (min_free_bytes) the drain pauses."
    ),
    "fuploader_disk_free_inodes": Meaning(
        "gauge", "Free inodes on that disk; left out where they are made as needed."
    ),
    "fuploader_dead_letters_waiting": Meaning(
        "gauge",
        "Dead letters that nobody sent back, by what failed: drain, process, or sink:NAME.",
        ("stage",),
    ),
    "fuploader_failing_partitions": Meaning(
        "gauge",
        "Partitions whose last attempt failed, by stage: process, pack, upload, store rows.",
        ("stage",),
    ),
    "fuploader_damaged_slots": Meaning("gauge", "Sealed slots whose seal cannot be read."),
    "fuploader_pause_wanted": Meaning(
        "gauge", "Whether somebody wants intake or shipping to be paused.", ("part",)
    ),
    "fuploader_working": Meaning(
        "gauge",
        "Whether the part works on this node now: a worker takes messages (intake), or a process "
        "works on a sealed slot (shipping).",
        ("part",),
    ),
}

Sample = tuple[str, tuple[str, ...], float]
"""A metric, the values of its own labels, and its value."""


def samples_of(pipeline: Pipeline, figures: Figures) -> Iterator[Sample]:
    """All that is known of a pipeline."""
    yield "fuploader_up", (), 1
    yield from _availability(pipeline, figures)
    yield from _totals(figures)
    yield from _queue(figures)
    yield from _backlog(figures)
    yield from _disk(pipeline, figures)
    for stage, count in {"drain": 0, **figures.letters}.items():
        yield "fuploader_dead_letters_waiting", (stage,), count
    yield from _failing(pipeline)
    works = {"intake": bool(figures.consumers), "shipping": ships(pipeline.layout)}
    for part in PARTS:
        yield "fuploader_pause_wanted", (part,), figures.wishes.of(part).paused
        yield "fuploader_working", (part,), works[part]


def _availability(pipeline: Pipeline, figures: Figures) -> Iterator[Sample]:
    parts = {
        "queue": figures.queue.depth is not None,
        "state": figures.snapshot is not None,
        "store": known_trouble(pipeline.layout) is None,
    }
    if pipeline.process is not None:
        parts["processor"] = processor_trouble_of(pipeline) is None
    parts |= {f"sink:{notes.sink}": notes.trouble is None for notes in all_sinks(pipeline)}
    for part, available in parts.items():
        yield "fuploader_available", (part,), available


def _totals(figures: Figures) -> Iterator[Sample]:
    if (known := figures.snapshot) is not None:
        yield "fuploader_messages_acknowledged_total", (), figures.messages_in or 0
        yield "fuploader_messages_duplicate_total", (), known.duplicates
        yield "fuploader_messages_dead_lettered_total", (), known.dead_letters
    stored = figures.stored
    yield "fuploader_messages_stored_total", (), stored.messages
    yield "fuploader_payload_stored_bytes_total", (), stored.payload_bytes
    yield "fuploader_archives_stored_total", (), stored.archives
    yield "fuploader_archives_stored_bytes_total", (), stored.archive_bytes
    yield "fuploader_store_requests_total", (), stored.requests
    if stored.last_stored_at:
        last = datetime.fromisoformat(stored.last_stored_at).timestamp()
        yield "fuploader_last_upload_timestamp_seconds", (), last


def _queue(figures: Figures) -> Iterator[Sample]:
    if (depth := figures.queue.depth) is not None:
        yield "fuploader_queue_messages", ("waiting",), depth.waiting
        if depth.in_hand is not None:
            yield "fuploader_queue_messages", ("in_hand",), depth.in_hand
    for doing in get_args(Doing):
        count = sum(one.doing == doing for one in figures.workers)
        yield "fuploader_workers", (doing,), count


def _backlog(figures: Figures) -> Iterator[Sample]:
    if figures.active_messages is not None:
        yield "fuploader_active_messages", (), figures.active_messages
    yield "fuploader_unshipped_slots", (), figures.sealed_slots
    yield "fuploader_unshipped_messages", (), figures.sealed_messages
    yield "fuploader_unshipped_bytes", (), figures.space.unshipped_bytes
    yield "fuploader_oldest_unshipped_seconds", (), figures.oldest_unshipped_seconds
    yield "fuploader_damaged_slots", (), figures.damaged_slots


def _disk(pipeline: Pipeline, figures: Figures) -> Iterator[Sample]:
    yield "fuploader_disk_free_bytes", (), figures.space.free_bytes
    yield "fuploader_disk_min_free_bytes", (), pipeline.min_free_bytes
    if figures.space.free_inodes is not None:
        yield "fuploader_disk_free_inodes", (), figures.space.free_inodes


def _failing(pipeline: Pipeline) -> Iterator[Sample]:
    counts = dict.fromkeys(("pack", "upload"), 0)
    if pipeline.process is not None:
        counts["process"] = 0
    if pipeline.sinks:
        counts["store rows"] = 0
    found = list(all_failures(pipeline.layout))
    for notes in all_sinks(pipeline):
        found += FailureNotes(notes.folder).all()
    for failure in found:
        counts[failure.stage] = counts.get(failure.stage, 0) + 1
    for stage, count in counts.items():
        yield "fuploader_failing_partitions", (stage,), count


_Read = tuple[Pipeline, list[Sample]]


class PipelineMetrics(Collector):
    """The metrics of pipelines. Thread-safe; the pipelines may change."""

    def __init__(
        self, pipelines: Iterable[Pipeline], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pipelines = {one.layout.root: one for one in pipelines}
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = -FRESH_SECONDS
        self._known: list[_Read] = []

    def add(self, pipeline: Pipeline) -> None:
        """Have the metrics of this pipeline as well, or of its changed settings."""
        self._pipelines = {**self._pipelines, pipeline.layout.root: pipeline}

    def describe(self) -> Iterable[Metric]:
        """What there may be: whoever registers it need not ask the queues."""
        return [_family(name) for name in METRICS]

    def collect(self) -> Iterable[Metric]:
        return _families(self._read())

    def text(self, names: Collection[str] | None = None) -> bytes:
        """All of it in the text format, or only that of the pipelines with these names."""
        known = self._read()
        chosen = [one for one in known if names is None or one[0].name in names]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Ready(_families(chosen)))
        return generate_latest(registry)

    def _read(self) -> list[_Read]:
        with self._lock:
            if self._clock() - self._read_at >= FRESH_SECONDS:
                pipelines = list(self._pipelines.values())
                with ThreadPoolExecutor(_AT_ONCE, "metrics") as threads:
                    found = threads.map(_read, pipelines)
                    self._known = list(zip(pipelines, found, strict=True))
                self._read_at = self._clock()
            return self._known


class _Ready(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(known: Iterable[_Read]) -> list[Metric]:
    families = {name: _family(name) for name in METRICS}
    families["fuploader_build_info"].add_metric([version("fuploader-dagster")], 1)
    for pipeline, found in known:
        for name, labels, value in found:
            families[name].add_metric([pipeline.name, pipeline.node, *labels], float(value))
    return [family for family in families.values() if family.samples]


def _read(pipeline: Pipeline) -> list[Sample]:
    try:
        queue = ask_queue(pipeline.source, QUEUE_SECONDS)
        return list(samples_of(pipeline, figures_of(pipeline, queue)))
    except (FuploaderError, OSError) as error:
        log.warning("the figures of %s cannot be read: %s", pipeline.name, error)
        return [("fuploader_up", (), 0)]


def _family(name: str) -> Any:
    meaning = METRICS[name]
    own = [] if name == "fuploader_build_info" else ["pipeline", "node"]
    kind = CounterMetricFamily if meaning.kind == "counter" else GaugeMetricFamily
    return kind(name, meaning.help, labels=[*own, *meaning.labels])
