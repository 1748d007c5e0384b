"""`python -m benchmarks.bench_archives`: what it costs to get one file back.

- `cat`: one member out of an archive of a gibibyte in a bucket of the S3 server of the tests
  (OpenStack Swift): HTTP requests as a proxy in front of it counts them, bytes, milliseconds.
- `write`: an archive of messages beside one plain zstd frame of the same tar stream: size, and
  messages a second with and without frames, manifest, digests and reading back.
- `formats`: each format of archives, of the same messages in one run: size, messages a second when
  packed and when verified, milliseconds for one member.
- `find`: one name of ten million in the catalog: milliseconds, bytes per name, time per archive.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
import zstandard
from xxhash import xxh3_128

from benchmarks.documents import DISTINCT, Documents, documents_of, name_of
from fuploader_dagster.archives.forms import FORMS
from fuploader_dagster.archives.members import MemberSource, PlainMember
from fuploader_dagster.archives.ranges import CountedReads, StoredArchive
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.catalog.catalog import Catalog, CatalogedArchive
from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.delivery.slot_members import SegmentMembers
from fuploader_dagster.disk.durable import fsync_file
from fuploader_dagster.disk.tar_headers import END, member_header, padding
from fuploader_dagster.resources.object_stores import S3
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.swift import SwiftServer

app = typer.Typer(add_completion=False, no_args_is_help=True)
MEMBER_BYTES = 4096
NAMES_PER_ARCHIVE = 10_000


@app.command()
def cat(
    mib: Annotated[int, typer.Option(help="Size of the archive.")] = 1024,
    members: Annotated[int, typer.Option(help="How many are read, each by a fresh reader.")] = 20,
) -> None:
    """One member out of a large archive in a bucket."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = SwiftServer(folder / "swift")
        proxy = FaultyProxy(server.port)
        server.folder.mkdir()
        server.start()
        proxy.start()
        try:
            _cat(folder, server, proxy, mib, members)
        finally:
            proxy.stop()
            server.stop()


def _cat(folder: Path, server: SwiftServer, proxy: FaultyProxy, mib: int, count: int) -> None:
    rng = random.Random(1)
    names = [f"{rng.randrange(10**19):019d}.json" for _ in range(mib * 2**20 // MEMBER_BYTES)]
    # does not compress: the archive has this size
    contents = ((name, rng.randbytes(MEMBER_BYTES)) for name in names)
    path = folder / "a.tar.zst"
    with _segment(folder / "segment", contents) as source:
        started = time.perf_counter()
        written = write_archive(path, source, threads=2)
        seconds = time.perf_counter() - started
    typer.echo(
        f"archive: {written.size_bytes:,} bytes, {len(names):,} members, written in {seconds:.1f} s"
    )
    bucket = server.fresh_bucket()
    _store(server, bucket, server.endpoint).put("a.tar.zst", written)
    store = _store(server, bucket, proxy.endpoint)
    spent, read, requests = [], [], []
    for name in rng.sample(names, count):
        proxy.play()
        started = time.perf_counter()
        counted = CountedReads(StoredArchive(store, "a.tar.zst"))
        with Archive.open(counted) as archive:
            assert len(archive.read(name)) == MEMBER_BYTES
        spent.append((time.perf_counter() - started) * 1000)
        read.append(counted.bytes_read)
        requests.append(dict(proxy.counts))
    typer.echo(
        f"cat: {requests[0]} requests, {statistics.mean(read):,.0f} bytes, "
        f"{statistics.median(spent):.0f} ms (median of {count})"
    )


def _segment(path: Path, contents: Iterable[tuple[str, bytes]]) -> SegmentMembers:
    members = []
    with path.open("wb") as file:
        for name, payload in contents:
            file.write(member_header(name, len(payload)) + payload + padding(len(payload)))
            members.append(PlainMember(name, len(payload), sha256(payload).digest()))
    return SegmentMembers(path, members)


def _store(server: SwiftServer, bucket: str, endpoint: str) -> ObjectStore:
    os.environ["BENCH_S3_SECRET"] = server.secret_key
    return S3(
        bucket=bucket,
        endpoint_url=endpoint,
        region=server.region,
        addressing_style="path",
        access_key_id=server.access_key,
        secret_access_key={"env": "BENCH_S3_SECRET"},
    ).open()


@app.command()
def write(
    messages: Annotated[int, typer.Option(help="Of about 2 KB.")] = 50_000,
    rounds: Annotated[int, typer.Option(help="Of each way, in turns.")] = 9,
) -> None:
    """An archive beside a single frame of the same data."""
    documents = documents_of(2000)
    contents = ((name_of(number), documents.content(number)) for number in range(messages))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _segment(folder / "segment", contents) as source:
            ways: dict[str, Callable[[Path], int]] = {
                "archive": lambda path: write_archive(path, source, threads=2).size_bytes,
                "single frame": lambda path: _single_frame(folder / "segment", path, threads=2),
            }
            _in_turns(folder, ways, messages, rounds)


def _in_turns(
    folder: Path, ways: dict[str, Callable[[Path], int]], messages: int, rounds: int
) -> None:
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    sizes = {}
    for number in range(rounds + 1):
        for way in list(ways) if number % 2 else reversed(ways):
            path = folder / "written"
            wall, cpu = time.perf_counter(), time.process_time()
            sizes[way] = ways[way](path)
            if number > 0:  # the first round warms up
                taken = time.perf_counter() - wall, time.process_time() - cpu
                spent[way].append(taken)
            path.unlink()
    for way, times in spent.items():
        wall, cpu = (statistics.median(one[which] for one in times) for which in (0, 1))
        typer.echo(
            f"{way}: {sizes[way]:,} bytes, {messages / wall:,.0f} messages/s, "
            f"{cpu / messages * 1e6:.1f} us CPU a message"
        )
    ours, plain = spent["archive"], spent["single frame"]
    typer.echo(
        f"archive over single frame: {sizes['archive'] / sizes['single frame']:.3f} in size, "
        f"{statistics.median(b[0] / a[0] for a, b in zip(ours, plain, strict=True)):.2f} in speed, "
        f"{statistics.median(a[1] / b[1] for a, b in zip(ours, plain, strict=True)):.2f} in CPU "
        f"(medians of the rounds' own)"
    )


def _single_frame(segment: Path, path: Path, threads: int) -> int:
    """What `zstd -T2` would do, synced as an archive is."""
    compressor = zstandard.ZstdCompressor(level=3, threads=threads)
    with segment.open("rb") as source, path.open("wb") as file:
        compressor.copy_stream(source, file, read_size=1 << 20, write_size=1 << 20)
        file.write(zstandard.ZstdCompressor().compress(END))
    fsync_file(path)
    return path.stat().st_size


@app.command()
def formats(
    messages: Annotated[int, typer.Option(help="Of about 1.5 KB, all different.")] = 10_000,
    rounds: Annotated[int, typer.Option(help="Of each format, in turns.")] = 5,
) -> None:
    """The formats beside each other."""
    kinds = [Documents(1500, seed=seed) for seed in range(-(-messages // DISTINCT))]
    contents = {name_of(n): kinds[n // DISTINCT].content(n % DISTINCT) for n in range(messages)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _segment(folder / "segment", contents.items()) as source:
            source.xxh128 = xxh3_128((folder / "segment").read_bytes()).hexdigest()
            spent: dict[str, list[tuple[float, ...]]] = {form: [] for form in FORMS}
            for _ in range(rounds):
                for form in FORMS:
                    spent[form].append(_one_format(folder / f"a.{form}", form, source))
    for form, times in spent.items():
        size, pack, verify, one = (statistics.median(each) for each in zip(*times, strict=True))
        typer.echo(
            f"{form}: {size:,.0f} bytes, packed at {messages / pack:,.0f} messages/s, verified at "
            f"{messages / verify:,.0f}, one member in {one * 1000:.1f} ms"
        )


def _one_format(path: Path, form: str, source: MemberSource) -> tuple[float, ...]:
    """Bytes; seconds to pack, to verify, and to read one member."""
    started = time.perf_counter()
    size = write_archive(path, source, form=form, threads=2).size_bytes
    packed = time.perf_counter()
    with Archive.open(path) as archive:
        archive.verify(threads=2).raise_if_damaged()
    verified = time.perf_counter()
    with Archive.open(path) as archive:
        archive.read(source.members[len(source.members) // 2].name)
    return size, packed - started, verified - packed, time.perf_counter() - verified


@app.command()
def find(
    names: Annotated[int, typer.Option(help="In the catalog.")] = 10_000_000,
    looked_up: Annotated[int, typer.Option(help="Names that are looked up.")] = 200,
) -> None:
    """One name of many in the catalog."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.sqlite"
        rng = random.Random(1)
        wanted: list[str] = []
        spent = []
        for number in range(names // NAMES_PER_ARCHIVE):
            some = [f"{rng.randrange(10**19):019d}.json" for _ in range(NAMES_PER_ARCHIVE)]
            wanted.append(some[0])
            one = CatalogedArchive(f"s3://b/{number}", str(number), "", "", len(some), number, None)
            started = time.perf_counter()
            with Catalog(path) as catalog:
                catalog.add(one, some)
            spent.append((time.perf_counter() - started) * 1000)
        size = path.stat().st_size
        typer.echo(
            f"catalog: {names:,} names, {size:,} bytes, {size / names:.1f} a name; adding an "
            f"archive of {NAMES_PER_ARCHIVE:,}: median {statistics.median(spent):.0f} ms, "
            f"at most {max(spent):.0f} ms"
        )
        _look_up("exact name, whole answer", path, rng.choices(wanted, k=looked_up))
        _look_up("prefix, first hit", path, [f"{n[:8]}*" for n in rng.choices(wanted, k=looked_up)])
        _look_up("pattern, first hit", path, [f"{n[:6]}*{n[8:]}" for n in wanted[:looked_up]])
        for what, pattern in (
            ("*part*, first hit", "*7301*"),
            ("*suffix of the newest archive, first hit", f"*{wanted[-1][2:]}"),
            ("*eight digits* of the newest archive, first hit", f"*{wanted[-1][6:14]}*"),
            ("*eight digits* that no name has", "*73x17301*"),
            ("*two digits*letter* that no name has", "*73*x*"),
        ):
            started, cpu = time.perf_counter(), time.process_time()
            with Catalog(path) as catalog:
                next(catalog.find(pattern), None)
            typer.echo(
                f"{what}: {(time.perf_counter() - started) * 1000:,.0f} ms, "
                f"{(time.process_time() - cpu) * 1000:,.0f} ms of CPU"
            )


def _look_up(what: str, path: Path, wanted: list[str]) -> None:
    spent = []
    for name in wanted:
        started = time.perf_counter()
        with Catalog(path) as catalog:
            found = list(catalog.find(name)) if "*" not in name else [next(catalog.find(name))]
        spent.append((time.perf_counter() - started) * 1000)
        assert found
    typer.echo(
        f"{what}, catalog opened anew: median {statistics.median(spent):.2f} ms, at most "
        f"{max(spent):.1f} ms"
    )


if __name__ == "__main__":
    app()
