"""FUploader 1.0.5, set up as its documentation shows, with RabbitMQ, Redis and S3.

Settings come as JSON in BENCH_SETTINGS. The parser and the name generator are FUploader's own, in
the way its page gives for messages in its envelope.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from file_uploader import (
    FileWriterConfig,
    FileWriterPipeline,
    OssProvider,
    OssUploader,
    RabbitMQSource,
    RedisStateStore,
    file_message_name,
    parse_file_message,
    run_pipeline_once,
    run_pipeline_supervised,
    tar_zstd_packer,
)

SETTINGS = json.loads(os.environ["BENCH_SETTINGS"])


def remote_key(archive_name: str) -> str:
    return f"benchmark/{archive_name}"


def build_pipeline() -> FileWriterPipeline:
    config = FileWriterConfig.legacy_meta(
        task_name=SETTINGS["task"],
        process_count=SETTINGS["process_count"],
        storage_root=Path(SETTINGS["storage_root"]),
        **SETTINGS["config"],
    )
    state = RedisStateStore(
        **SETTINGS["redis"],
        key_style="legacy_meta",
        task_name=config.task_name,
        node_id=config.node_id,
        slot_count=config.slot_count,
    )
    return (
        FileWriterPipeline.with_config(config)
        .with_state_store(state)
        .with_message_source(RabbitMQSource(**SETTINGS["rabbitmq"]))
        .with_object_store(OssUploader(provider=OssProvider.S3, **SETTINGS["s3"]))
        .with_message_parser(parse_file_message)
        .with_file_name_generator(file_message_name)
        .with_packer(tar_zstd_packer)
        .with_remote_key_generator(remote_key)
    )


def main() -> None:
    node = SETTINGS["node"]
    if SETTINGS["supervised"]:
        run_pipeline_supervised(
            build_pipeline, process_count=SETTINGS["process_count"], base_node_id=node
        )
    else:
        # Without a worker's number in the node's name this configuration refuses to start.
        os.environ["NODE_ID"] = f"{node}-meta-p0"
        asyncio.run(run_pipeline_once(build_pipeline))


if __name__ == "__main__":
    main()
