"""FUploader 1.0.5 as a program, in any of its modes, that dies where it is told to.

Settings come as JSON in FUPLOADER_APP. Where it dies it takes its whole process group with it, as a
power cut or `kill -9` of a container would. `tests/former.py` starts it.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import signal
import time
from pathlib import Path
from typing import Any

import file_uploader
from file_uploader import recovery
from file_uploader.services import meta_packer

SETTINGS = json.loads(os.environ.get("FUPLOADER_APP", "{}"))
MOMENT, TIMES = SETTINGS.get("moment", ""), SETTINGS.get("times", 1)
passed: dict[str, int] = {}


def reached(moment: str) -> None:
    """Die, if this is the moment, at the n-th time."""
    passed[moment] = passed.get(moment, 0) + 1
    if moment == MOMENT and passed[moment] == TIMES:
        die()


def die() -> None:
    os.killpg(0, signal.SIGKILL)
    time.sleep(60)


class State(file_uploader.RedisStateStore):
    async def increment_and_check_threshold(self, *args: Any, **kwargs: Any) -> Any:
        reached("written")
        counted = await super().increment_and_check_threshold(*args, **kwargs)
        reached("counted")
        return counted

    async def switch_slot_dir(self, slot: int, next_dir_id: str) -> None:
        reached("moved to sealed")
        await super().switch_slot_dir(slot, next_dir_id)
        reached("switched")

    async def enqueue_ready_dir(self, ready_dir: str) -> None:
        await super().enqueue_ready_dir(ready_dir)
        reached("queued")

    async def lock_ready_dir(self, ready_dir: str, token: str) -> bool:
        locked = await super().lock_ready_dir(ready_dir, token)
        reached("taken from the queue")
        return locked

    async def initialize_runtime_state(self, slots: list[Any], ready_dirs: list[Any]) -> None:
        reached("recovered")
        await super().initialize_runtime_state(slots, ready_dirs)

    async def reset_slot_state(self, slot: int, **kwargs: Any) -> None:
        reached("recovered")
        await super().reset_slot_state(slot, **kwargs)


class Store(file_uploader.OssUploader):
    async def upload(self, local_path: Path, remote_key: str) -> bool:
        reached("named")
        if SETTINGS.get("refuse_uploads"):
            return False
        done = await super().upload(local_path, remote_key)
        reached("stored")
        return done


async def packer(directory: Path) -> Path | None:
    made = await file_uploader.tar_zstd_packer(directory)
    if MOMENT == "half packed" and made is not None and passed.get("packed", 0) + 1 == TIMES:
        os.truncate(made, made.stat().st_size // 2)
        passed["half packed"] = TIMES - 1
        reached("half packed")
    reached("packed")
    return made


class Removing:
    """`shutil` as the packing service sees it."""

    @staticmethod
    def rmtree(path: Path, **_: Any) -> None:
        reached("archive removed")
        for number, file in enumerate(sorted(Path(path).iterdir())):
            if number == 5:
                reached("half removed")
            file.unlink()
        Path(path).rmdir()


rename = pathlib.Path.rename


def slow_rename(self: Path, target: Any) -> Path:
    done = rename(self, target)
    if passed.get("recovery begins"):
        reached("recovering")
    return done


scan = recovery.ResidualRecovery.scan_and_recover


async def scan_and_recover(self: Any) -> int:
    reached("recovery begins")
    try:
        return await scan(self)
    finally:
        del passed["recovery begins"]
        if MOMENT == "recovering":  # it had fewer files to move than that: it dies after the last
            die()


def file_name(data: file_uploader.DecodedFilePayload) -> str:
    return data.file_name


def remote_key(archive_name: str) -> str:
    return f"{SETTINGS.get('prefix', 'aweme')}/{time.strftime('%Y%m%d')}/{archive_name}"


def build_pipeline() -> file_uploader.FileWriterPipeline:
    common: dict[str, Any] = {
        "storage_root": Path(SETTINGS["root"]),
        "task_name": SETTINGS["task"],
        "pack_threshold": SETTINGS["pack_threshold"],
        "packer_interval": 0.05,
        "meta_writer_max_tasks_per_child": SETTINGS.get("max_tasks", 0),
        "residue_file_upload": False,
    }
    if SETTINGS["layout"] == "legacy_meta":
        config = file_uploader.FileWriterConfig.legacy_meta(
            process_count=SETTINGS["processes"], **common
        )
        object.__setattr__(config, "ready_dir_format", SETTINGS["ready_format"])
    else:
        config = file_uploader.FileWriterConfig(
            slot_count=SETTINGS["processes"],
            slot_strategy="worker_index",
            ready_dir_format=SETTINGS["ready_format"],
            **common,
        )
    state = State(
        **SETTINGS["redis"],
        key_style=SETTINGS["key_style"],
        key_prefix=SETTINGS["key_prefix"],
        task_name=SETTINGS["task"],
        node_id=config.node_id,
        slot_count=config.slot_count,
    )
    store = Store(provider=file_uploader.OssProvider.S3, **SETTINGS["s3"])
    pipeline = (
        file_uploader.FileWriterPipeline.with_config(config)
        .with_state_store(state)
        .with_message_source(file_uploader.RabbitMQSource(**SETTINGS["rabbitmq"]))
        .with_object_store(store)
        .with_message_parser(file_uploader.parse_file_message)
        .with_file_name_generator(file_name)
        .with_packer(packer)
        .with_remote_key_generator(remote_key)
    )
    # In the flat layout the first start finds no directory, sets no state, and handles nothing.
    return pipeline if SETTINGS["recover"] else pipeline.no_recovery()


def main() -> None:
    meta_packer.shutil = Removing
    pathlib.Path.rename = slow_rename  # type: ignore[assignment, method-assign]
    recovery.ResidualRecovery.scan_and_recover = scan_and_recover
    node = SETTINGS["node"]
    if SETTINGS["supervised"]:
        file_uploader.run_pipeline_supervised(
            build_pipeline,
            process_count=SETTINGS["processes"],
            base_node_id=node,
            restart_delay=0.1,
        )
    else:
        os.environ["NODE_ID"] = f"{node}-meta-p0"
        asyncio.run(file_uploader.run_pipeline_once(build_pipeline))


if __name__ == "__main__":
    main()
