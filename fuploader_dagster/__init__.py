"""From the message queue to verified archives in object storage, as a Dagster project.

The names that projects use are importable from here; each is loaded when it is first asked for, so
that a worker process or a producer does not load Dagster or a client library that it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuploader_dagster.assets.partitions import Names as Names
    from fuploader_dagster.component import QueueToObjectStore as QueueToObjectStore
    from fuploader_dagster.definitions import build_definitions as build_definitions
    from fuploader_dagster.delivery.find_archive import open_partition as open_partition
    from fuploader_dagster.parts import Parts as Parts
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
    from fuploader_dagster.resources.object_stores import COS as COS
    from fuploader_dagster.resources.object_stores import OSS as OSS
    from fuploader_dagster.resources.object_stores import S3 as S3
    from fuploader_dagster.resources.object_stores import Local as Local
    from fuploader_dagster.resources.object_stores import Mirror as Mirror
    from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue as EmbeddedQueue
    from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ as RabbitMQ
    from fuploader_dagster.resources.states.redis import RedisState as RedisState
    from fuploader_dagster.resources.states.sqlite import SqliteState as SqliteState
    from fuploader_dagster.settings.pipeline import Pipeline as Pipeline
    from fuploader_dagster.standalone import drain_pipeline as drain_pipeline
    from fuploader_dagster.standalone import recover_pipeline as recover_pipeline
    from fuploader_dagster.standalone import run_pipeline as run_pipeline
    from fuploader_dagster.standalone import ship_pipeline as ship_pipeline

_HOMES = {
    "open_partition": "delivery.find_archive",
    "Pipeline": "settings.pipeline",
    "QueueToObjectStore": "component",
    "build_definitions": "definitions",
    "DecodedFilePayload": "processing.producer",
    "FileMessage": "processing.producer",
    "FileMessagePublisher": "processing.producer",
    "encode_file_message": "processing.producer",
    "file_message_name": "processing.producer",
    "parse_file_message": "processing.producer",
    "publish_file_messages": "processing.producer",
    "serialize_file_payload": "processing.producer",
    "Names": "assets.partitions",
    "Parts": "parts",
    "drain_pipeline": "standalone",
    "recover_pipeline": "standalone",
    "run_pipeline": "standalone",
    "ship_pipeline": "standalone",
    "EmbeddedQueue": "resources.sources.embedded.source",
    "COS": "resources.object_stores",
    "Local": "resources.object_stores",
    "Mirror": "resources.object_stores",
    "OSS": "resources.object_stores",
    "S3": "resources.object_stores",
    "RabbitMQ": "resources.sources.rabbitmq.source",
    "RedisState": "resources.states.redis",
    "SqliteState": "resources.states.sqlite",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
