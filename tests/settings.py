"""Settings for tests: parts in a temporary folder."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

from fuploader_dagster.disk.temporaries import is_temporary
from fuploader_dagster.resources.object_stores import Local
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.states.sqlite import SqliteState
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from fuploader_dagster.slots.sealing import SealedSlot
from fuploader_dagster.slots.slot import SlotOwner


def intake(folder: Path, **values: Any) -> Intake:
    """An `Intake` named `docs` whose source is never opened."""
    return Intake(
        **{
            "name": "docs",
            "storage_root": folder / "data",
            "source": RabbitMQ(queue="never-opened"),
            "state": SqliteState(path=folder / "state.sqlite"),
            **values,
        }
    )


def pipeline(folder: Path, **values: Any) -> Pipeline:
    """A `Pipeline` named `docs` that stores into a folder, without pauses between retries."""
    return Pipeline(
        **{
            "name": "docs",
            "storage_root": folder / "data",
            "source": RabbitMQ(queue="never-opened"),
            "state": SqliteState(path=folder / "state.sqlite"),
            "store": Local(path=str(folder / "objects")),
            "retry_delay_seconds": 0.01,
            **values,
        }
    )


def embedded_parts(folder: Path = Path()) -> dict[str, Any]:
    """Source, state and store of a configuration file, in this folder or in the file's own."""
    return {
        "source": {"kind": "embedded", "path": str(folder / "queue")},
        "state": {"kind": "sqlite", "path": str(folder / "state.sqlite")},
        "store": {"kind": "local", "path": str(folder / "objects")},
    }


def sealed(
    settings: Intake, files: dict[str, bytes], *, slot: int = 0, seconds_ago: float = 0
) -> SealedSlot:
    """A sealed slot that holds the files."""
    with SlotOwner(settings, slot, clock=lambda: time.time() - seconds_ago) as writer:
        for name, content in files.items():
            writer.add(name, content)
        one = writer.seal("request")
    assert one is not None
    return one


def archives_in(folder: Path) -> list[Path]:
    """The `.tar.zst` archives below the folder that are whole: a put may be under way."""
    return sorted(path for path in folder.rglob("*.tar.zst") if not is_temporary(path.name))


def archived_files(folder: Path) -> dict[str, list[bytes]]:
    """Everything in the `.tar.zst` archives below the folder, read by zstd and tar themselves."""
    found: dict[str, list[bytes]] = {}
    for archive in archives_in(folder):
        tar = subprocess.run(["zstd", "-dc", str(archive)], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            for member in members:
                file = members.extractfile(member)
                assert file is not None
                found.setdefault(member.name, []).append(file.read())
    return found
