"""A verified upload of 256 MiB against boto3's own, to the same server.

All send the same file in turns, each round beginning with another one. Ours does more: it reads
the file through and compares its digest with the one it was packed with, sends a digest of each
part, looks before and after and compares what the server states. The bare call is `upload_file`,
once with our part size and concurrency and once as boto3 has it by itself (8 MiB, 10 at once), and
verifies nothing afterwards. Server and client share the machine's cores.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from dagster import EnvVar

from benchmarks.ground import Ground, Runs, note, ratio_of_rounds
from benchmarks.results import Row
from fuploader_dagster.contracts.object_store import ArchiveFile, ObjectStore
from fuploader_dagster.resources.object_stores import S3
from tests.servers.radosgw import RadosGateway
from tests.servers.swift import SwiftServer

MIB = 1 << 20
SIZE_MIB = 256
PART, CONCURRENCY = 16 * MIB, 4
KEY_VARIABLE = "BENCH_UPLOAD_SECRET"

Server = SwiftServer | RadosGateway
Calls = Mapping[str, Callable[[str], object]]


@dataclass(frozen=True)
class Taken:
    """Of one upload: seconds by the clock, and seconds of this process's CPU."""

    wall: float
    cpu: float


def rows(ground: Ground) -> Iterator[Row]:
    size_mib = max(round(SIZE_MIB * ground.sizes.scale), 2 * PART // MIB)
    servers: dict[str, Server] = {"Swift": ground.swift, "Ceph": ground.radosgw}
    for name, server in servers.items():
        yield from _to(ground, name, server, size_mib)


def _to(ground: Ground, name: str, server: Server, size_mib: int) -> Iterator[Row]:
    with ground.folder() as folder:
        archive = _make_archive(folder, size_mib)
        store, calls = _calls(server, archive)
        numbers = count()
        measures = {one: partial(_taken, store, call, numbers) for one, call in calls.items()}
        for measure in measures.values():
            measure()  # warms up
        rounds = ground.rounds(
            f"upload of {size_mib} MiB to {name}", measures, ground.sizes.times(9, 5)
        )
    for bare, what in (("same parts", "the same parts"), ("defaults", "boto3's own parts")):
        yield Row(
            row=f"upload {size_mib} MiB to S3 on {name}, verified, against upload_file, {what}",
            unit="MiB/s",
            ours=rounds.spread(lambda taken: size_mib / taken["ours"].wall),
            bare=rounds.spread(lambda taken, bare=bare: size_mib / taken[bare].wall),  # type: ignore[misc]
            against="bare",
            least=0.9,
            aim=1.0,
            note=note(_of_rounds(rounds, bare), rounds),
        )
    yield Row(
        row=f"CPU of an upload of {size_mib} MiB to S3 on {name}, without the server's",
        unit="s",
        ours=rounds.spread(lambda taken: taken["ours"].cpu),
        bare=rounds.spread(lambda taken: taken["same parts"].cpu),
        against="bare",
        more_is_better=False,
        note=note("two digests of every byte more than upload_file", rounds),
    )


def _of_rounds(rounds: Runs[dict[str, Taken]], bare: str) -> str:
    return ratio_of_rounds(rounds.spread(lambda taken: taken[bare].wall / taken["ours"].wall))


def _calls(server: Server, archive: ArchiveFile) -> tuple[ObjectStore, Calls]:
    os.environ[KEY_VARIABLE] = server.secret_key
    bucket = server.fresh_bucket()
    store = S3(
        bucket=bucket,
        endpoint_url=server.endpoint,
        region=server.region,
        addressing_style="path",
        access_key_id=server.access_key,
        secret_access_key=EnvVar(KEY_VARIABLE),
        part_size_bytes=PART,
        concurrency=CONCURRENCY,
    ).open()
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(
            s3={"addressing_style": "path"}, max_pool_connections=12, retries={"max_attempts": 10}
        ),
    )
    send = partial(client.upload_file, str(archive.path), bucket)
    same = TransferConfig(
        multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=CONCURRENCY
    )
    return store, {
        "ours": lambda key: store.put(key, archive),
        "same parts": partial(send, Config=same),
        "defaults": send,
    }


def _taken(store: ObjectStore, call: Callable[[str], object], numbers: Iterator[int]) -> Taken:
    key = str(next(numbers))
    wall, cpu = time.perf_counter(), _cpu_seconds()
    call(key)
    taken = Taken(time.perf_counter() - wall, _cpu_seconds() - cpu)
    store.delete(key)
    return taken


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _make_archive(folder: Path, size_mib: int) -> ArchiveFile:
    path, digest = folder / "archive.tar.zst", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size_mib):
            content = os.urandom(MIB)
            digest.update(content)
            file.write(content)
    return ArchiveFile(path, size_mib * MIB, digest.hexdigest())
