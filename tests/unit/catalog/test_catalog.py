"""The catalog finds each file by name, prefix and pattern, and is never needed."""

from __future__ import annotations

import fnmatch
import json
import logging
import random
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fuploader_dagster.catalog.catalog import Catalog, CatalogedArchive, CatalogUnusable
from fuploader_dagster.catalog.missed import MOST_KEPT
from fuploader_dagster.catalog.name_lists import NamePattern, join_names, pack_names
from fuploader_dagster.catalog.rebuild import (
    _UPLOAD_WAITS_SECONDS,
    note_in_catalog,
    rebuild,
    remove_catalog,
)
from fuploader_dagster.cli.catalog import _as_lines
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.lookup.found import as_builtins
from fuploader_dagster.lookup.search import Search
from fuploader_dagster.lookup.wanted import Wanted
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt
from tests.settings import pipeline, sealed

ODD_NAMES = [
    "Readme.JSON",
    "readme.json",
    "a b.json",
    'it\'s "quoted".json',
    "消息.json",
    "ÄäΣ.json",
    "^a.json",
    "^41.json",
    "with\nline\x01\x7f.json",
    "half\ud800.json",
    "x[1]*?.json",
    "sub/dir/-.+~#%&=;,!@$(){}|`<>:_.json",
    "n" * 255,
]


def archive(number: int, **values: object) -> CatalogedArchive:
    made = CatalogedArchive(
        address=f"s3://b/{number}",
        key=str(number),
        partition=f"p{number}",
        sealed_at=f"2026-01-01T00:00:{number:02}",
        members=1,
        size_bytes=100 + number,
        sha256="00",
    )
    return made._replace(**values)


def names(catalog: Catalog, wanted: str) -> list[str]:
    return [hit.name for hit in catalog.find(wanted)]


def shipped(settings: Pipeline, *slots: dict[str, bytes]) -> list[Done]:
    for files in slots:
        sealed(settings, files)
    outcomes = list(ship(settings, settings.store.open()))
    assert all(isinstance(one, Done) for one in outcomes)
    return [one for one in outcomes if isinstance(one, Done)]


def test_every_name_is_found_as_it_is_and_no_other(tmp_path: Path) -> None:
    with Catalog(tmp_path / "c.sqlite") as catalog:
        catalog.add(archive(1), ODD_NAMES)
        catalog.add(archive(2), ["readme.json"])
        for name in ODD_NAMES:
            numbers = [hit.archive.key for hit in catalog.find(name) if hit.name == name]
            assert numbers == (["1", "2"] if name == "readme.json" else ["1"])
        assert names(catalog, "READMe.json") == []
        assert sorted(names(catalog, "*")) == sorted([*ODD_NAMES, "readme.json"])


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.text(st.sampled_from("aAbB^?*.[] ä'\"\n24"), min_size=1), unique=True, max_size=20),
    st.text(st.sampled_from("aAb^?*.[] ä"), min_size=1, max_size=6),
)
def test_a_pattern_finds_what_fnmatch_says(
    tmp_path_factory: pytest.TempPathFactory, there: list[str], pattern: str
) -> None:
    with Catalog(tmp_path_factory.mktemp("catalog") / "c.sqlite") as catalog:
        catalog.add(archive(1), there)
        expected = {n for n in there if n == pattern or fnmatch.fnmatchcase(n, pattern)}
        assert sorted(names(catalog, pattern)) == sorted(expected)


@pytest.mark.parametrize("in_order", [0, 10_000])
def test_a_pattern_finds_the_same_in_order_and_in_the_lists_of_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_order: int
) -> None:
    monkeypatch.setattr("fuploader_dagster.catalog.catalog._IN_ORDER", in_order)
    rng = random.Random(3)
    there = [[f"doc-{rng.randrange(10**9):09d}.json" for _ in range(40)] for _ in range(12)]
    with Catalog(tmp_path / "c.sqlite") as catalog:
        for number, some in enumerate(there):
            catalog.add(archive(number), some)
        one = there[7][5]
        for pattern in (f"*{one[5:]}", f"doc-*{one[6:12]}*", f"?{one[1:11]}*", "d*1*7.json", "*x*"):
            expected = [
                name for some in there for name in some if fnmatch.fnmatchcase(name, pattern)
            ]
            assert sorted(names(catalog, pattern)) == sorted(expected)
            assert bool(expected) == (pattern != "*x*")


def test_files_with_the_same_name_come_oldest_archive_first(tmp_path: Path) -> None:
    with Catalog(tmp_path / "c.sqlite") as catalog:
        for number in (3, 1, 2):
            catalog.add(archive(number), ["a.json"])
        assert [hit.archive.key for hit in catalog.find("a.json")] == ["1", "2", "3"]


def test_matches_come_oldest_archive_first_and_never_from_removed_archives(
    tmp_path: Path,
) -> None:
    with Catalog(tmp_path / "c.sqlite") as catalog:
        for number in (3, 1, 2):
            catalog.add(archive(number), ["b-x.json", "a-x.json", "消息-x.json"])
        catalog.forget(archive(2).address)
        found = [(hit.archive.key, hit.name) for hit in catalog.find("*?-x*")]
        there = ("b-x.json", "a-x.json", "消息-x.json")
        assert found == [(key, name) for key in "13" for name in there]


def test_adding_an_archive_again_changes_nothing_and_another_one_replaces_it(
    tmp_path: Path,
) -> None:
    with Catalog(tmp_path / "c.sqlite") as catalog:
        assert catalog.add(archive(1), ["a"])
        assert not catalog.add(archive(1), ["a"])
        assert names(catalog, "a") == ["a"]
        assert catalog.add(archive(1, size_bytes=7), ["b"])
        assert names(catalog, "*") == ["b"]
        catalog.forget("s3://b/1")
        assert names(catalog, "*") == []


def test_a_hundred_thousand_names_take_30_bytes_each_and_are_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with Catalog(path) as catalog:
        for number in range(10):
            catalog.add(archive(number), [f"{n * 7919 % 10**6:019}-{number}" for n in range(10000)])
    assert path.stat().st_size < 30 * 100_000
    with Catalog(path) as catalog:
        steps: list[int] = []  # of SQLite's machine, each a thousand
        catalog._db.set_progress_handler(lambda: steps.append(1_000), 1_000)
        assert next(catalog.find("00000000000000079*")).name.startswith("00000000000000079")
        assert len(names(catalog, f"{7919:019}-3")) == 1
        assert sum(steps) < 20_000, "it went through the names"
        assert names(catalog, "*007919-3") == [f"{7919:019}-3"]


def test_uploading_fills_the_catalog(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    first, second = shipped(settings, {"a.json": b"1", "b.json": b"2"}, {"a.json": b"3"})
    with Catalog(settings.layout.catalog) as catalog:
        hits = list(catalog.find("a.json"))
        assert [hit.archive.partition for hit in hits] == [first.partition, second.partition]
        assert first.receipt is not None
        assert hits[0].archive.address == first.receipt.address
        assert hits[0].archive.sealed_at < hits[1].archive.sealed_at
        assert hits[0].archive.members == 2


def test_a_broken_catalog_fails_no_upload_and_is_rebuilt_from_the_store_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = pipeline(tmp_path)
    shipped(settings, {"a.json": b"1"})
    settings.layout.catalog.write_bytes(b"no database at all" * 100)
    with caplog.at_level(logging.WARNING):
        shipped(settings, {"b.json": b"2"})
    assert "is stored, but not in the catalog" in caplog.text
    with pytest.raises(CatalogUnusable, match="rebuild --anew"):
        Catalog(settings.layout.catalog)
    remove_catalog(settings.layout)
    elsewhere = pipeline(tmp_path, storage_root=tmp_path / "another machine")
    for one in (settings, elsewhere):
        report = rebuild(one, one.store.open())
        assert (report.archives, report.added, report.unreadable) == (2, 2, [])
        with Catalog(one.layout.catalog) as catalog:
            assert names(catalog, "*") == ["a.json", "b.json"]
            assert all(hit.archive.partition for hit in catalog.find("*"))


def test_a_rebuild_reads_only_missing_archives_and_forgets_those_that_are_gone(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path)
    one, _ = shipped(settings, {"a.json": b"1"}, {"b.json": b"2"})
    store = settings.store.open()
    report = rebuild(settings, store)
    assert (report.archives, report.added, report.gone) == (2, 0, 0)
    assert one.receipt is not None
    store.delete(one.receipt.key)
    assert rebuild(settings, store).gone == 1
    with Catalog(settings.layout.catalog) as catalog:
        assert names(catalog, "*") == ["b.json"]


@pytest.mark.parametrize("anew", [False, True])
def test_a_rebuild_finds_archives_under_keys_of_an_earlier_template(
    tmp_path: Path, anew: bool
) -> None:
    one, _ = shipped(pipeline(tmp_path, key="old/{archive}"), {"a.json": b"1"}, {"b.json": b"2"})
    settings = pipeline(tmp_path, key="new/{archive}")
    store = settings.store.open()
    if anew:
        remove_catalog(settings.layout)
    report = rebuild(settings, store)
    assert (report.archives, report.added, report.gone) == (2, 2 * anew, 0)
    assert one.receipt is not None
    store.delete(one.receipt.key)
    assert rebuild(settings, store).gone == 1
    with Catalog(settings.layout.catalog) as catalog:
        assert names(catalog, "*") == ["b.json"]


def test_a_rebuild_names_a_damaged_archive_and_adds_all_others(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    one, _ = shipped(settings, {"a.json": b"1"}, {"b.json": b"2"})
    assert one.receipt is not None
    path = tmp_path / "objects" / one.receipt.key
    path.write_bytes(path.read_bytes()[:60])
    remove_catalog(settings.layout)
    report = rebuild(settings, settings.store.open())
    assert report.damaged
    assert len(report.unreadable) == 1
    with Catalog(settings.layout.catalog) as catalog:
        assert names(catalog, "*") == ["b.json"]


def test_the_catalog_can_be_switched_off(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, catalog=False)
    shipped(settings, {"a.json": b"1"})
    assert not settings.layout.catalog.exists()


@pytest.mark.parametrize("pattern", ["*\0*", "\0", "a\0b", "*[\0]*", "a*\0"])
def test_a_pattern_with_a_nul_ends_and_finds_nothing(pattern: str, tmp_path: Path) -> None:
    """No name has one; looked for as text it would be found between any two names."""
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        catalog.add(CatalogedArchive("s3://a", "k", "p", "t", 1, 1, None), ["a", "b"])
        assert list(catalog.find(pattern)) == []
    assert list(NamePattern(pattern).find_in(pack_names(join_names(["a", "b"])))) == []


def receipt(number: int) -> Receipt:
    one = archive(number)
    return Receipt(
        partition=f"20260101T00000000{number}Z-local-s0-000001",
        address=one.address,
        key=one.key,
        size_bytes=one.size_bytes,
        sha256="00",
        messages=1,
        payload_bytes=1,
        stored_at="",
    )


def test_a_damaged_catalog_fails_no_upload_and_find_says_what_to_do(
    tmp_path: Path,
) -> None:
    """With 8 changed bits each, half of the time all in the first page: that is the schema."""
    dice = random.Random(5)
    settings = pipeline(tmp_path)
    path = settings.layout.catalog
    with Catalog(path) as catalog:
        for number in range(3):
            catalog.add(archive(number), [f"name-{number}-{n:05d}" for n in range(1_000)])
    good = path.read_bytes()
    refused = 0
    for turn in range(150):
        content = bytearray(good)
        for _ in range(8):
            content[dice.randrange(len(good) if turn % 2 else 4096)] ^= 1 << dice.randrange(8)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        path.write_bytes(content)
        note_in_catalog(receipt(1), lambda: ["a"], settings)
        try:
            with Catalog.to_read(path) as catalog:
                catalog.archives()
            for wanted in ("*", "name-1-00*", "*-00777", "name-0-00001"):
                search = Search(settings, Wanted(wanted, patterns=True))
                for copy in search.copies():
                    assert json.loads(json.dumps(as_builtins(copy)))
                    assert _as_lines(copy)
                if search.catalog_trouble is not None:
                    raise search.catalog_trouble
        except CatalogUnusable as error:
            refused += 1
            assert error.hint
    assert refused > 10


def test_a_damaged_list_of_names_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with Catalog(path) as catalog:
        catalog.add(archive(1), ["a-1", "b-2"])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        (packed,) = db.execute("select names from lists").fetchone()
        for place in range(len(packed)):
            changed = bytearray(packed)
            changed[place] ^= 1
            db.execute("update lists set names = ?", [changed])
            found: list[str] = []
            with Catalog.to_read(path) as catalog, suppress(CatalogUnusable):
                found = names(catalog, "*-?")
            assert found in ([], ["a-1", "b-2"])


def test_archives_missed_because_of_a_lock_are_added_by_a_later_upload_or_a_rebuild(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuploader_dagster.catalog.rebuild._UPLOAD_WAITS_SECONDS", 0.1)
    settings = pipeline(tmp_path)
    shipped(settings, {"a.json": b"1"})
    with closing(sqlite3.connect(settings.layout.catalog, isolation_level=None)) as other:
        other.execute("begin immediate")
        shipped(settings, {"b.json": b"2"}, {"消息.json": b"3"})
        assert caplog.text.count("a later upload will add it to the catalog") == 2
        other.execute("rollback")
        shipped(settings, {"d.json": b"4"})
        with Catalog.to_read(settings.layout.catalog) as catalog:
            there = ["a.json", "b.json", "d.json", "消息.json"]
            assert sorted(names(catalog, "*")) == there
        other.execute("begin immediate")
        shipped(settings, {"e.json": b"5"})
        other.execute("rollback")
    assert len(list(settings.layout.catalog_missed.iterdir())) == 1
    (settings.layout.catalog_missed / "torn.json").write_bytes(b'{"archive": [')
    report = rebuild(settings, settings.store.open())
    assert (report.archives, report.added) == (5, 0)
    assert list(settings.layout.catalog_missed.iterdir()) == []
    with Catalog.to_read(settings.layout.catalog) as catalog:
        assert names(catalog, "e.json") == ["e.json"]


def test_a_limited_number_of_missed_archives_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuploader_dagster.catalog.rebuild._UPLOAD_WAITS_SECONDS", 0.01)
    settings = pipeline(tmp_path)
    settings.layout.catalog_missed.mkdir(parents=True)
    for number in range(MOST_KEPT):
        (settings.layout.catalog_missed / str(number)).touch()
    with closing(sqlite3.connect(settings.layout.catalog, isolation_level=None)) as other:
        other.execute("begin immediate")
        note_in_catalog(receipt(1), lambda: ["a"], settings)
    assert "fuploader catalog rebuild adds it" in caplog.text
    assert len(list(settings.layout.catalog_missed.iterdir())) == MOST_KEPT


def test_an_upload_waits_a_few_seconds_for_the_catalog_at_most() -> None:
    assert _UPLOAD_WAITS_SECONDS <= 3


def test_a_catalog_that_was_removed_while_open_is_not_written(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    with Catalog(settings.layout.catalog) as catalog:
        catalog.add(archive(1), ["a"])
        remove_catalog(settings.layout)
        with pytest.raises(CatalogUnusable, match="removed or replaced"):
            catalog.add(archive(2), ["b"])


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "pattern",
    ["*?" * 40 + "x", "*a" * 40 + "Z", "*" * 4096, "[" * 4096, "?" * 4096, "*[!b]" * 40],
    ids=lambda pattern: pattern[:4],
)
def test_every_pattern_ends_soon(tmp_path: Path, pattern: str) -> None:
    """Each of these takes hours where its time grows with a power of its length or its stars."""
    there = ["a" * 255, *(f"doc-{n:06}.json" * 12 for n in range(100))]
    with Catalog(tmp_path / "c.sqlite") as catalog:
        catalog.add(archive(1), there)
        expected = sorted(name for name in there if fnmatch.fnmatchcase(name, pattern))
        assert sorted(names(catalog, pattern)) == expected


def test_a_pattern_that_is_longer_than_any_name_is_refused(tmp_path: Path) -> None:
    with Catalog(tmp_path / "c.sqlite") as catalog:
        with pytest.raises(ConfigError, match="at most 4,096"):
            names(catalog, "[" * 4097)
        assert names(catalog, "a" * 5000) == []
