"""How fast a verified upload is beside the bare SDK call, on the same server in the same run.

    python -m benchmarks.bench_upload [--server swift|radosgw] [--size-mib 256] [--rounds 5]

Both send the same file with the same part size and concurrency, in turns, the order changing each
round. `put` does more: it reads the file through and compares its digest with the one it was
packed with, sends checksums, looks before and after and compares what the server states. The
bare call is `upload_file` of boto3 with its defaults otherwise. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from rich.console import Console
from rich.table import Table

from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.storage import ArchiveFile
from tests.servers.radosgw import RadosGateway
from tests.servers.swift import SwiftServer

MIB = 1 << 20
PART = 16 * MIB
CONCURRENCY = 4

Server = SwiftServer | RadosGateway


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--server", choices=["swift", "radosgw"], default="swift")
    arguments.add_argument("--size-mib", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=5)
    asked = arguments.parse_args()
    kind = {"swift": SwiftServer, "radosgw": RadosGateway}[asked.server]
    with tempfile.TemporaryDirectory() as folder:
        server: Server = kind(Path(folder) / "server")
        server.folder.mkdir()
        server.start()
        try:
            archive = _make_archive(Path(folder), asked.size_mib)
            seconds = _measure(server, archive, asked.rounds)
        finally:
            server.stop()
    _print(asked.server, asked.size_mib, seconds)


def _make_archive(folder: Path, size_mib: int) -> ArchiveFile:
    path, digest = folder / "archive.tar.zst", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size_mib):
            content = os.urandom(MIB)
            digest.update(content)
            file.write(content)
    return ArchiveFile(path, size_mib * MIB, digest.hexdigest())


def _measure(server: Server, archive: ArchiveFile, rounds: int) -> dict[str, list[_Taken]]:
    bucket = server.fresh_bucket()
    os.environ["BENCH_SECRET"] = server.secret_key
    ours = S3(
        bucket=bucket,
        endpoint_url=server.endpoint,
        region=server.region,
        addressing_style="path",
        access_key_id=server.access_key,
        secret_access_key={"env": "BENCH_SECRET"},
        part_size_bytes=PART,
        concurrency=CONCURRENCY,
    ).open()
    bare = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=CONCURRENCY + 2),
    )
    transfer = TransferConfig(
        multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=CONCURRENCY
    )
    calls: dict[str, Callable[[str], object]] = {
        "put, verified": lambda key: ours.put(key, archive),
        "upload_file of boto3": lambda key: bare.upload_file(
            str(archive.path), bucket, key, Config=transfer
        ),
    }
    taken: dict[str, list[_Taken]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        names = list(calls) if number % 2 else list(reversed(calls))
        for name in names:
            result = _Taken.by(partial(calls[name], f"{name} {number}"))
            if number > 0:  # the first round warms up
                taken[name].append(result)
            ours.delete(f"{name} {number}")
    return taken


class _Taken:
    """Seconds by the clock, and seconds of this process's CPU."""

    def __init__(self, wall: float, cpu: float) -> None:
        self.wall, self.cpu = wall, cpu

    @classmethod
    def by(cls, call: Callable[[], object]) -> _Taken:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        call()
        return cls(time.perf_counter() - wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _print(server: str, size_mib: int, taken: dict[str, list[_Taken]]) -> None:
    table = Table(
        title=f"{size_mib} MiB to S3 on {server}, median of {len(next(iter(taken.values())))}"
    )
    for column in ("", "MiB/s", "seconds", "fastest", "CPU seconds here"):
        table.add_column(column, justify="right" if column else "left")
    figures = {}
    for name, results in taken.items():
        wall = statistics.median(each.wall for each in results)
        fastest = min(each.wall for each in results)
        cpu = statistics.median(each.cpu for each in results)
        figures[name] = {
            "mib_per_second": round(size_mib / wall, 1),
            "seconds": round(wall, 3),
            "fastest_seconds": round(fastest, 3),
            "cpu_seconds": round(cpu, 3),
        }
        table.add_row(name, *(f"{value:g}" for value in figures[name].values()))
    Console().print(table)
    print(json.dumps({"server": server, "size_mib": size_mib, **figures}))


if __name__ == "__main__":
    main()
