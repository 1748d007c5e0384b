"""From the message queue to verified archives in object storage, as a Dagster project.

Everything that a project may import is importable from here, from `errors` and from `testing`
(docs/compatibility.md). Each name is loaded when it is first asked for, so that a worker process or
a producer does not load Dagster or a client library that it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fuploader_dagster._moved import find_moved_modules

if TYPE_CHECKING:  # what `_NAMES` says, for type checkers; a test compares the two
    from fuploader_dagster.archives.ranges import StoredArchive as StoredArchive
    from fuploader_dagster.archives.reader import Archive as Archive
    from fuploader_dagster.assets.archive_reader import ArchiveReader as ArchiveReader
    from fuploader_dagster.assets.dead_letter_jobs import build_discard_job as build_discard_job
    from fuploader_dagster.assets.dead_letter_jobs import (
        build_export_letters_job as build_export_letters_job,
    )
    from fuploader_dagster.assets.dead_letter_jobs import build_requeue_job as build_requeue_job
    from fuploader_dagster.assets.find_job import build_find_job as build_find_job
    from fuploader_dagster.assets.partitions import Names as Names
    from fuploader_dagster.assets.pause_jobs import build_pause_job as build_pause_job
    from fuploader_dagster.assets.pause_jobs import build_resume_job as build_resume_job
    from fuploader_dagster.assets.repack_job import build_repack_job as build_repack_job
    from fuploader_dagster.assets.replay_job import build_replay_job as build_replay_job
    from fuploader_dagster.assets.seal_job import build_seal_job as build_seal_job
    from fuploader_dagster.assets.ship_job import build_ship_job as build_ship_job
    from fuploader_dagster.component import QueueToObjectStore as QueueToObjectStore
    from fuploader_dagster.contracts.diagnosis import Diagnosis as Diagnosis
    from fuploader_dagster.contracts.notifier import Notice as Notice
    from fuploader_dagster.contracts.notifier import Notifier as Notifier
    from fuploader_dagster.contracts.notifier import NotifierSettings as NotifierSettings
    from fuploader_dagster.contracts.object_store import ArchiveFile as ArchiveFile
    from fuploader_dagster.contracts.object_store import ObjectInfo as ObjectInfo
    from fuploader_dagster.contracts.object_store import ObjectStore as ObjectStore
    from fuploader_dagster.contracts.object_store import Progress as Progress
    from fuploader_dagster.contracts.object_store import Retry as Retry
    from fuploader_dagster.contracts.object_store import StoredObject as StoredObject
    from fuploader_dagster.contracts.object_store import UnfinishedUpload as UnfinishedUpload
    from fuploader_dagster.contracts.object_store import note_request as note_request
    from fuploader_dagster.contracts.processor import Failure as Failure
    from fuploader_dagster.contracts.processor import FileResult as FileResult
    from fuploader_dagster.contracts.processor import Item as Item
    from fuploader_dagster.contracts.processor import Partial as Partial
    from fuploader_dagster.contracts.processor import Processor as Processor
    from fuploader_dagster.contracts.processor import ProcessorSettings as ProcessorSettings
    from fuploader_dagster.contracts.processor import Result as Result
    from fuploader_dagster.contracts.processor import StoredResult as StoredResult
    from fuploader_dagster.contracts.sink import Delivery as Delivery
    from fuploader_dagster.contracts.sink import ItemRows as ItemRows
    from fuploader_dagster.contracts.sink import RejectedItem as RejectedItem
    from fuploader_dagster.contracts.sink import Sink as Sink
    from fuploader_dagster.contracts.sink import SinkSettings as SinkSettings
    from fuploader_dagster.contracts.sink import StoredRows as StoredRows
    from fuploader_dagster.contracts.source import CommittedBatch as CommittedBatch
    from fuploader_dagster.contracts.source import Depth as Depth
    from fuploader_dagster.contracts.source import Message as Message
    from fuploader_dagster.contracts.source import MessagePublisher as MessagePublisher
    from fuploader_dagster.contracts.source import MessageSource as MessageSource
    from fuploader_dagster.contracts.source import PartDepth as PartDepth
    from fuploader_dagster.contracts.source import SourceSettings as SourceSettings
    from fuploader_dagster.contracts.state import Claim as Claim
    from fuploader_dagster.contracts.state import Commit as Commit
    from fuploader_dagster.contracts.state import Note as Note
    from fuploader_dagster.contracts.state import SlotCount as SlotCount
    from fuploader_dagster.contracts.state import Snapshot as Snapshot
    from fuploader_dagster.contracts.state import StateSettings as StateSettings
    from fuploader_dagster.contracts.state import StateStore as StateStore
    from fuploader_dagster.definitions import build_asset_checks as build_asset_checks
    from fuploader_dagster.definitions import build_assets as build_assets
    from fuploader_dagster.definitions import build_definitions as build_definitions
    from fuploader_dagster.definitions import build_jobs as build_jobs
    from fuploader_dagster.definitions import build_resources as build_resources
    from fuploader_dagster.definitions import build_schedules as build_schedules
    from fuploader_dagster.definitions import build_sensors as build_sensors
    from fuploader_dagster.delivery.find_archive import open_partition as open_partition
    from fuploader_dagster.fetching.settings import Fetch as Fetch
    from fuploader_dagster.processing.functions import Functions as Functions
    from fuploader_dagster.processing.http import HttpHandler as HttpHandler
    from fuploader_dagster.processing.producer import DecodedFilePayload as DecodedFilePayload
    from fuploader_dagster.processing.producer import FileMessage as FileMessage
    from fuploader_dagster.processing.producer import FileMessagePublisher as FileMessagePublisher
    from fuploader_dagster.processing.producer import encode_file_message as encode_file_message
    from fuploader_dagster.processing.producer import file_message_name as file_message_name
    from fuploader_dagster.processing.producer import parse_file_message as parse_file_message
    from fuploader_dagster.processing.producer import publish_file_messages as publish_file_messages
    from fuploader_dagster.processing.producer import (
        serialize_file_payload as serialize_file_payload,
    )
    from fuploader_dagster.processing.routes import from_buffer as from_buffer
    from fuploader_dagster.processing.routes import processor as processor
    from fuploader_dagster.resources.notifiers.queue import QueueNotices as QueueNotices
    from fuploader_dagster.resources.notifiers.redis_list import (
        RedisListNotices as RedisListNotices,
    )
    from fuploader_dagster.resources.notifiers.webhook import WebhookNotices as WebhookNotices
    from fuploader_dagster.resources.object_stores import COS as COS
    from fuploader_dagster.resources.object_stores import OSS as OSS
    from fuploader_dagster.resources.object_stores import S3 as S3
    from fuploader_dagster.resources.object_stores import Local as Local
    from fuploader_dagster.resources.object_stores import Mirror as Mirror
    from fuploader_dagster.resources.object_stores import ObjectStoreResource as ObjectStoreResource
    from fuploader_dagster.resources.object_stores.archive_bytes import open_archive as open_archive
    from fuploader_dagster.resources.object_stores.archive_bytes import (
        refuse_changed as refuse_changed,
    )
    from fuploader_dagster.resources.object_stores.keys import full_key as full_key
    from fuploader_dagster.resources.sinks.clickhouse import ClickHouseSink as ClickHouseSink
    from fuploader_dagster.resources.sinks.redis_stream import RedisStreamSink as RedisStreamSink
    from fuploader_dagster.resources.sinks.sql import SqlSink as SqlSink
    from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue as EmbeddedQueue
    from fuploader_dagster.resources.sources.kafka.settings import Kafka as Kafka
    from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ as RabbitMQ
    from fuploader_dagster.resources.sources.redis_list.source import RedisList as RedisList
    from fuploader_dagster.resources.sources.redis_stream.source import RedisStream as RedisStream
    from fuploader_dagster.resources.sources.sql.source import SqlTable as SqlTable
    from fuploader_dagster.resources.states.redis import RedisState as RedisState
    from fuploader_dagster.resources.states.sqlite import SqliteState as SqliteState
    from fuploader_dagster.sensors.alert_sensor import build_alert_sensor as build_alert_sensor
    from fuploader_dagster.sensors.automation_sensor import (
        build_automation_sensor as build_automation_sensor,
    )
    from fuploader_dagster.sensors.drain_sensor import build_drain_sensor as build_drain_sensor
    from fuploader_dagster.sensors.failure_sensor import (
        build_failure_sensor as build_failure_sensor,
    )
    from fuploader_dagster.sensors.recovery_schedule import (
        build_recovery_schedule as build_recovery_schedule,
    )
    from fuploader_dagster.sensors.retention_schedule import (
        build_retention_schedule as build_retention_schedule,
    )
    from fuploader_dagster.sensors.scrub_schedule import build_scrub_job as build_scrub_job
    from fuploader_dagster.sensors.scrub_schedule import (
        build_scrub_schedule as build_scrub_schedule,
    )
    from fuploader_dagster.sensors.watch_schedule import (
        build_watch_schedule as build_watch_schedule,
    )
    from fuploader_dagster.settings.loading import load_pipelines as load_pipelines
    from fuploader_dagster.settings.pipeline import Pipeline as Pipeline
    from fuploader_dagster.settings.secret import Secret as Secret
    from fuploader_dagster.standalone import Shipped as Shipped
    from fuploader_dagster.standalone import drain_pipeline as drain_pipeline
    from fuploader_dagster.standalone import pause_pipeline as pause_pipeline
    from fuploader_dagster.standalone import recover_pipeline as recover_pipeline
    from fuploader_dagster.standalone import resume_pipeline as resume_pipeline
    from fuploader_dagster.standalone import run_pipeline as run_pipeline
    from fuploader_dagster.standalone import ship_pipeline as ship_pipeline

_NAMES = {
    "archives.ranges": ("StoredArchive",),
    "archives.reader": ("Archive",),
    "assets.archive_reader": ("ArchiveReader",),
    "assets.dead_letter_jobs": (
        "build_discard_job",
        "build_export_letters_job",
        "build_requeue_job",
    ),
    "assets.find_job": ("build_find_job",),
    "assets.partitions": ("Names",),
    "assets.pause_jobs": ("build_pause_job", "build_resume_job"),
    "assets.repack_job": ("build_repack_job",),
    "assets.replay_job": ("build_replay_job",),
    "assets.seal_job": ("build_seal_job",),
    "assets.ship_job": ("build_ship_job",),
    "component": ("QueueToObjectStore",),
    "contracts.diagnosis": ("Diagnosis",),
    "contracts.notifier": ("Notice", "Notifier", "NotifierSettings"),
    "contracts.object_store": (
        "ArchiveFile",
        "ObjectInfo",
        "ObjectStore",
        "Progress",
        "Retry",
        "StoredObject",
        "UnfinishedUpload",
        "note_request",
    ),
    "contracts.processor": (
        "Failure",
        "FileResult",
        "Item",
        "Partial",
        "Processor",
        "ProcessorSettings",
        "Result",
        "StoredResult",
    ),
    "contracts.sink": (
        "Delivery",
        "ItemRows",
        "RejectedItem",
        "Sink",
        "SinkSettings",
        "StoredRows",
    ),
    "contracts.source": (
        "CommittedBatch",
        "Depth",
        "Message",
        "MessagePublisher",
        "MessageSource",
        "PartDepth",
        "SourceSettings",
    ),
    "contracts.state": (
        "Claim",
        "Commit",
        "Note",
        "SlotCount",
        "Snapshot",
        "StateSettings",
        "StateStore",
    ),
    "definitions": (
        "build_asset_checks",
        "build_assets",
        "build_definitions",
        "build_jobs",
        "build_resources",
        "build_schedules",
        "build_sensors",
    ),
    "delivery.find_archive": ("open_partition",),
    "fetching.settings": ("Fetch",),
    "processing.functions": ("Functions",),
    "processing.http": ("HttpHandler",),
    "processing.producer": (
        "DecodedFilePayload",
        "FileMessage",
        "FileMessagePublisher",
        "encode_file_message",
        "file_message_name",
        "parse_file_message",
        "publish_file_messages",
        "serialize_file_payload",
    ),
    "processing.routes": ("from_buffer", "processor"),
    "resources.notifiers.queue": ("QueueNotices",),
    "resources.notifiers.redis_list": ("RedisListNotices",),
    "resources.notifiers.webhook": ("WebhookNotices",),
    "resources.object_stores": ("COS", "OSS", "S3", "Local", "Mirror", "ObjectStoreResource"),
    "resources.object_stores.archive_bytes": ("open_archive", "refuse_changed"),
    "resources.object_stores.keys": ("full_key",),
    "resources.sinks.clickhouse": ("ClickHouseSink",),
    "resources.sinks.redis_stream": ("RedisStreamSink",),
    "resources.sinks.sql": ("SqlSink",),
    "resources.sources.embedded.source": ("EmbeddedQueue",),
    "resources.sources.kafka.settings": ("Kafka",),
    "resources.sources.rabbitmq.source": ("RabbitMQ",),
    "resources.sources.sql.source": ("SqlTable",),
    "resources.sources.redis_stream.source": ("RedisStream",),
    "resources.sources.redis_list.source": ("RedisList",),
    "resources.states.redis": ("RedisState",),
    "resources.states.sqlite": ("SqliteState",),
    "sensors.alert_sensor": ("build_alert_sensor",),
    "sensors.automation_sensor": ("build_automation_sensor",),
    "sensors.drain_sensor": ("build_drain_sensor",),
    "sensors.failure_sensor": ("build_failure_sensor",),
    "sensors.recovery_schedule": ("build_recovery_schedule",),
    "sensors.retention_schedule": ("build_retention_schedule",),
    "sensors.scrub_schedule": ("build_scrub_job", "build_scrub_schedule"),
    "sensors.watch_schedule": ("build_watch_schedule",),
    "settings.loading": ("load_pipelines",),
    "settings.pipeline": ("Pipeline",),
    "settings.secret": ("Secret",),
    "standalone": (
        "Shipped",
        "drain_pipeline",
        "pause_pipeline",
        "recover_pipeline",
        "resume_pipeline",
        "run_pipeline",
        "ship_pipeline",
    ),
}
"""What is importable from here, by the module that has it."""
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

find_moved_modules()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  takes long, and few ask

        return version("fuploader-dagster")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
