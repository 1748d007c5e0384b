"""Each format of archives, the whole way: shipped, found, checked, replayed, packed and processed
again, by the commands and functions that do so with `.tar.zst`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.archives.forms import FORMS
from fuploader_dagster.archives.ranges import StoredArchive
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.catalog.catalog import Catalog
from fuploader_dagster.catalog.rebuild import rebuild
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.redo import redo_partitions
from fuploader_dagster.delivery.repack import repack_partitions
from fuploader_dagster.delivery.replay import Selection, replay
from fuploader_dagster.delivery.scrub import examine
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.processing.decoder import File
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, find_receipt
from tests.integration.test_cli import configure
from tests.integration.test_cli_archives import Fuploader, damaged, fuploader, shipped
from tests.integration.test_replay import files_in, with_queue
from tests.processors_for_tests import Script, script
from tests.settings import pipeline, sealed
from tests.unit.archives.forms import odd_contents
from tests.unit.archives.test_archive_reader import files_below

__all__ = ["fuploader"]

FILES = {f"{n}.json": script(results=n % 3) for n in range(30)} | {"消息.json": script()}


def stored(settings: Pipeline, files: dict[str, bytes]) -> Receipt:
    partition = sealed(settings, files).seal.partition
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done), outcome
    return receipt_of(settings, partition)


def receipt_of(settings: Pipeline, partition: str) -> Receipt:
    receipt = find_receipt(settings.layout, partition)
    assert receipt is not None
    return receipt


def with_format(folder: Path, archive_format: str, **values: Any) -> Pipeline:
    return with_queue(
        folder,
        archive_format=archive_format,
        process=Script(),
        message_format="raw",
        **values,
    )


@pytest.mark.parametrize("archive_format", FORMS)
def test_a_slot_and_its_results_go_the_whole_way(tmp_path: Path, archive_format: str) -> None:
    settings = with_format(tmp_path, archive_format)
    receipt = stored(settings, FILES)
    assert receipt.key.endswith(f".{archive_format}")
    store, finder = settings.store.open(), ArchiveFinder({"docs": settings})
    with finder.open(receipt.partition) as archive:
        names = archive.names()
        results = {name for name in names if name.startswith("results/")}
        assert archive.results() == results
        assert set(names) - results == set(FILES)
        assert len(names) == receipt.members
        content = {name: archive.read(name) for name in names}
    assert FILES.items() < content.items()

    finding = examine(receipt, lambda _: StoredArchive(store, receipt.key), members=99)
    assert (finding.problems, finding.note, finding.members_read) == ([], "", len(names))

    with Catalog.to_read(settings.layout.catalog) as catalog:
        assert [hit.name for hit in catalog.find("results/2*")] == [
            name for name in sorted(results) if name.startswith("results/2")
        ]
    settings.layout.catalog.unlink()
    report = rebuild(settings, store)
    assert (report.added, report.unreadable) == (1, [])
    with Catalog.to_read(settings.layout.catalog) as catalog:
        (hit,) = catalog.find("7.json")
        assert hit.archive.partition == receipt.partition

    selection = Selection([receipt.partition], None, settings.source.describe())
    published = replay(selection, settings, settings.source.publisher(), finder.open)
    assert published.published == len(FILES)
    assert files_in(settings) == [File(name, content) for name, content in FILES.items()]


@pytest.mark.parametrize("archive_format", FORMS)
def test_it_is_packed_in_another_format_and_processed_again(
    tmp_path: Path, archive_format: str
) -> None:
    settings = with_format(tmp_path, archive_format)
    first = stored(settings, FILES)
    store = settings.store.open()
    other = FORMS[(FORMS.index(archive_format) + 1) % len(FORMS)]
    changed = with_format(tmp_path, other)
    (outcome,) = repack_partitions(
        [first.partition], changed, store, ArchiveFinder({"docs": changed}).open
    )
    assert isinstance(outcome, Done), outcome
    second = receipt_of(changed, first.partition)
    assert second.key.endswith(f".{other}")
    assert (second.messages, second.results) == (first.messages, first.results)
    assert contents(tmp_path, second) == contents(tmp_path, first)

    (outcome,) = redo_partitions(
        [first.partition], changed, store, ArchiveFinder({"docs": changed}).open
    )
    assert isinstance(outcome, Done), outcome
    third = receipt_of(changed, first.partition)
    assert ".redo-" in third.key
    assert third.key.endswith(f".{other}")
    assert contents(tmp_path, third) == contents(tmp_path, first)
    assert rebuild(changed, store).archives == 3


def contents(folder: Path, receipt: Receipt) -> dict[str, bytes]:
    with Archive.open(folder / "objects" / receipt.key) as archive:
        return {file.name: file.content for file in archive.files(lambda _: True)}


@pytest.mark.parametrize("archive_format", FORMS)
def test_a_slot_keeps_the_format_of_the_moment_when_it_was_sealed(
    tmp_path: Path, archive_format: str
) -> None:
    before = pipeline(tmp_path, archive_format=archive_format)
    files = {name: content for name, content in odd_contents().items() if "/" not in name}
    slot = sealed(before, files)
    other = FORMS[(FORMS.index(archive_format) + 1) % len(FORMS)]
    (outcome,) = ship(pipeline(tmp_path, archive_format=other), before.store.open())
    assert isinstance(outcome, Done), outcome
    receipt = receipt_of(before, slot.seal.partition)
    assert receipt.key.endswith(f".{archive_format}")
    with Archive.open(tmp_path / "objects" / receipt.key) as archive:
        assert archive.manifest is not None
        assert (archive.manifest.form or "tar.zst") == archive_format
    assert contents(tmp_path, receipt) == files


@pytest.mark.parametrize("archive_format", FORMS)
def test_the_commands_read_it(
    fuploader: Fuploader,
    tmp_path: Path,
    archive_format: str,
) -> None:
    files = {name: content for name, content in odd_contents().items() if "/" not in name}
    configure(tmp_path, archive_format=archive_format)
    done = shipped(tmp_path, files)
    assert done.receipt is not None
    partition, path = done.partition, tmp_path / "objects" / done.receipt.key
    assert fuploader("ls", partition).lines == [f"{len(b):>12} {n}" for n, b in files.items()]
    listed = json.loads(fuploader("ls", str(path), "--json").out)
    assert listed["has_manifest"] is True
    for name in ("pretty.json", "binary.bin", "empty.json", "消息.json"):
        assert fuploader("cat", partition, name).out == files[name]
    assert fuploader("cat", partition).out == path.read_bytes()
    answer = fuploader("verify", partition, str(path))
    assert answer.code == 0, answer.err
    assert all(
        "every byte is as it was written" in line
        for line in answer.err.splitlines()
        if "members" in line
    )
    assert fuploader("restore", partition, "out").code == 0
    assert files_below(tmp_path / "out") == files
    assert fuploader("find", "pretty.json").code == 0
    refused = fuploader("restore", str(path), "small", "--max-memory", "1000")
    assert refused.code != 0
    assert "--max-memory" in refused.err
    answer = fuploader("verify", str(damaged(path)))
    assert answer.code == 5, answer.err


def test_without_content_everything_that_needs_it_refuses_with_a_sentence(
    fuploader: Fuploader,
    tmp_path: Path,
) -> None:
    configure(tmp_path, archive_format="parquet", parquet_content=False)
    done = shipped(tmp_path, {"1.json": b'{"id": 1}', "2.json": b'{"id": 2}'})
    partition = done.partition
    assert fuploader("ls", partition).lines == ["           9 1.json", "           9 2.json"]
    assert fuploader("find", "2.json").code == 0
    assert fuploader("verify", partition).code == 0
    for command in (
        ("cat", partition, "1.json"),
        ("restore", partition, "out"),
        ("replay", partition),
    ):
        answer = fuploader(*command)
        assert answer.code == 4, answer.err
        assert "parquet_content: false" in " ".join(answer.err.split())
    (settings,) = load_pipelines(tmp_path / "fuploader.yaml").values()
    finder = ArchiveFinder({"docs": settings})
    (outcome,) = repack_partitions([partition], settings, settings.store.open(), finder.open)
    assert isinstance(outcome, Failed)
    receipt = receipt_of(settings, partition)
    finding = examine(receipt, lambda one: finder.of_receipt(one, settings).source, members=4)
    assert finding.problems == []
    assert "cannot be read back" in finding.note
