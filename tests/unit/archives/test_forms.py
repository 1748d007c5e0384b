"""Every format: what goes in comes out, byte for byte; damage is found; other programs read it."""

from __future__ import annotations

import io
import json
import random
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from fuploader_dagster.archives.forms import FORMS, TAR, Columns
from fuploader_dagster.archives.parquet_end import ContentNotKept
from fuploader_dagster.archives.ranges import CountedReads, LocalFile
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.errors import DamagedArchive, StoreRefused
from tests.unit.archives.archives import InMemory, headers_for, payloads, segment
from tests.unit.archives.forms import ODD_CONTENTS, odd_contents, packed
from tests.unit.archives.test_archive_reader import files_below

OTHERS = [form for form in FORMS if form != TAR]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frame_bytes", [0, 2048])
def test_every_member_comes_out_as_it_went_in(tmp_path: Path, form: str, frame_bytes: int) -> None:
    contents = odd_contents()
    headers = headers_for(contents)
    written = packed(tmp_path, form, contents, headers, frame_bytes=frame_bytes)
    with Archive.open(written.path) as archive:
        assert [m.name for m in archive.members] == list(contents)
        assert {m.name: m.headers for m in archive.members if m.headers} == headers
        assert [m.size_bytes for m in archive.members] == list(map(len, contents.values()))
        assert sorted(archive.names()) == sorted(contents)
        for name, content in contents.items():
            assert archive.read(name) == content, name
        files = list(archive.files(lambda _: True))
        assert {file.name: file.content for file in files} == contents
        assert [file.headers for file in files] == [headers.get(name, "") for name in contents]
        report = archive.verify()
        assert (report.members, report.damages, report.has_digests) == (len(contents), [], True)
        archive.restore(tmp_path / "out")
        with pytest.raises(StoreRefused):
            archive.read("nobody")
    assert files_below(tmp_path / "out") == contents


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sealed", [True, False])
def test_the_same_members_give_the_same_bytes(tmp_path: Path, form: str, sealed: bool) -> None:
    first = packed(tmp_path, form, frame_bytes=4096)
    again = packed(tmp_path, form, frame_bytes=4096, threads=3, sealed=sealed, name="b")
    assert first.sha256 == again.sha256
    assert first.path.read_bytes() == again.path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_without_members_is_whole(tmp_path: Path, form: str) -> None:
    written = packed(tmp_path, form, {})
    with Archive.open(written.path) as archive:
        assert archive.members == []
        assert archive.verify().damages == []


@pytest.mark.parametrize("form", FORMS)
def test_one_member_costs_few_small_reads(tmp_path: Path, form: str) -> None:
    rng = random.Random(5)
    contents = {f"{n}.json": rng.randbytes(1000).hex().encode() for n in range(3000)}
    written = packed(tmp_path, form, contents, {}, frame_bytes=2**20)
    counted = CountedReads(LocalFile(written.path))
    with Archive.open(counted) as archive:
        assert archive.read("1500.json") == contents["1500.json"]
    assert counted.reads <= 5
    assert counted.bytes_read < written.size_bytes / 2


@pytest.mark.parametrize("form", OTHERS)
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, form: str) -> None:
    contents = {name: content[:3000] for name, content in odd_contents().items()}
    content = packed(tmp_path, form, contents, frame_bytes=4096).path.read_bytes()
    rng = random.Random(1)
    places = {*rng.sample(range(len(content)), 400), *range(len(content) - 300, len(content))}
    for at in places:
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        with pytest.raises(DamagedArchive):
            Archive.open(InMemory(bytes(changed))).verify(threads=1).raise_if_damaged()
            pytest.fail(f"nothing was found at {at}")


@pytest.mark.parametrize("form", OTHERS)
def test_a_flipped_bit_in_a_member_costs_its_frame_alone(tmp_path: Path, form: str) -> None:
    contents = {name: content[:3000] for name, content in odd_contents().items()}
    path = packed(tmp_path, form, contents, frame_bytes=4096).path
    content = bytearray(path.read_bytes())
    with Archive.open(path) as archive:
        assert archive.manifest is not None
        frame = archive.manifest.frames()[3]
        end = frame.tar_offset + frame.tar_bytes
        lost = {m.name for m in archive.members if m.offset < end and m.end > frame.tar_offset}
    content[frame.offset + frame.size_bytes // 2] ^= 4
    archive = Archive.open(InMemory(bytes(content)))
    assert {damage.member for damage in archive.verify().damages} == lost
    report = archive.restore(tmp_path / "out")
    assert {damage.member for damage in report.damages} == lost
    assert files_below(tmp_path / "out") == {
        name: content for name, content in contents.items() if name not in lost
    }


@pytest.mark.parametrize("form", OTHERS)
def test_a_cut_off_archive_is_damage_wherever_it_is_cut(tmp_path: Path, form: str) -> None:
    content = packed(tmp_path, form, payloads(20), frame_bytes=4096).path.read_bytes()
    for cut in [*range(4, len(content) - 300, 997), *range(len(content) - 300, len(content), 7)]:
        archive = Archive.open(InMemory(content[:cut]))
        with pytest.raises(DamagedArchive):
            archive.verify(threads=1).raise_if_damaged()
        with pytest.raises(DamagedArchive):
            _ = archive.members


def test_lines_are_recovered_without_the_manifest(tmp_path: Path) -> None:
    contents = payloads(50)
    headers = headers_for(contents)
    content = packed(tmp_path, "jsonl.zst", contents, headers, frame_bytes=4096).path.read_bytes()
    with Archive.open(InMemory(content)) as archive:
        assert archive.manifest is not None
        frames = archive.manifest.frames()
    cut = content[: frames[-1].offset]
    report = Archive.open(InMemory(cut)).restore(tmp_path / "out")
    found = files_below(tmp_path / "out")
    assert found.items() < contents.items()
    assert len(found) > 40
    (damage,) = report.damages
    assert str(damage).startswith(f"memory has no manifest at its end (offset {len(cut)})")
    damaged = bytearray(content)
    damaged[archive.manifest.offset + 60] ^= 1
    damaged[frames[1].offset + 30] ^= 1
    report = Archive.open(InMemory(bytes(damaged))).restore(tmp_path / "again")
    assert len(report.damages) >= 2
    again = files_below(tmp_path / "again")
    assert again.items() < contents.items()
    assert len(again) > 40


def test_zstd_and_json_read_the_lines(tmp_path: Path) -> None:
    contents = ODD_CONTENTS
    headers = headers_for(contents)
    path = packed(tmp_path, "jsonl.zst", contents, headers).path
    text = subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["name"] for line in lines] == list(contents)
    assert {line["name"]: json.dumps(line["headers"]) for line in lines if "headers" in line} == {
        name: json.dumps(json.loads(kept)) for name, kept in headers.items()
    }
    by_name = {line["name"]: line for line in lines}
    for name in ("compact", "spaces", "pretty", "duplicate keys", "newlines at both ends", "deep"):
        content = contents[f"{name}.json"]
        assert by_name[f"{name}.json"]["content"] == json.loads(content)
    for name in ("returns.json", "too deep.json", "nan.json", "text.txt", "bom.json"):
        assert by_name[name]["content_text"].encode() == contents[name]
    assert "content_base64" in by_name["binary.bin"]
    assert "content_base64" in by_name["controls.txt"]


def test_zipfile_and_unzip_read_the_zip(tmp_path: Path) -> None:
    contents = odd_contents()
    headers = headers_for(contents)
    path = packed(tmp_path, "zip", contents, headers).path
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == list(contents)
        for info in archive.infolist():
            assert archive.read(info) == contents[info.filename]
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o100644
            assert info.comment.decode() == headers.get(info.filename, "")
    tar = subprocess.run(["bsdtar", "-xOf", path], check=True, capture_output=True)
    assert tar.stdout == b"".join(contents.values())
    with path.open("rb") as stream:  # from front to back, as from a pipe
        tar = subprocess.run(
            ["bsdtar", "-xOf", "-"], stdin=stream, check=False, capture_output=True
        )
    assert tar.stdout == b"".join(contents.values())


@pytest.mark.parametrize("form", ["jsonl.zst", "parquet"])
def test_duckdb_reads_it_as_a_stranger(tmp_path: Path, form: str) -> None:
    contents = {f"{n}.json": b'{"id":%d,"kind":"%s"}' % (n, b"ab"[n % 2 :]) for n in range(5000)}
    contents |= ODD_CONTENTS
    headers = headers_for(contents)
    path = packed(tmp_path, form, contents, headers, frame_bytes=2**16).path
    empty = packed(tmp_path, form, {}, name="empty").path
    assert queried("select count(*) from FILE", path) == [(len(contents),)]
    odd = [(sum(n for n in range(5000) if n % 2),)]
    if form == "jsonl.zst":
        lines = "read_json(FILE, columns={name: 'VARCHAR', content: 'JSON'})"
        total = f"from {lines} select sum((content->>'id')::int) where content->>'kind' = 'b'"
        assert queried(total, path) == odd
        return
    assert queried("select sum(id) from FILE where kind = 'b'", path) == odd
    kept = queried("select _name, _content, _header_cmd from FILE", path)
    assert {name: content for name, content, _ in kept} == contents
    assert {name: cmd for name, _, cmd in kept if cmd} == {
        name: json.loads(text)["cmd"] for name, text in headers.items()
    }
    assert queried("select count(*) from FILE", empty) == [(0,)]


def queried(query: str, path: Path) -> list[tuple[Any, ...]]:
    """What DuckDB answers; `FILE` is the archive."""
    with duckdb.connect() as db:
        return db.sql(query.replace("FILE", f"'{path}'")).fetchall()


def test_columns_have_the_types_of_what_is_in_them(tmp_path: Path) -> None:
    values: dict[str, list[object]] = {
        "whole": [1, -5, 2**63 - 1],
        "number": [1, 2.5, None],
        "flag": [True, False, None],
        "text": ["a", "", None],
        "mixed": [1, "a", {"b": [1]}],
        "huge": [2**64, 1, 2],
        "nothing": [None, None, None],
        "_name": ["x", "y", "z"],
    }
    rows = [{field: some[n] for field, some in values.items()} for n in range(3)]
    contents = {f"{n}.json": json.dumps(row).encode() for n, row in enumerate(rows)}
    contents |= {"list.json": b"[1]", "text.txt": b"text"}
    table = pq.read_table(packed(tmp_path, "parquet", contents, {}).path)
    assert {field.name: str(field.type) for field in table.schema} == {
        "_name": "string",
        "whole": "int64",
        "number": "double",
        "flag": "bool",
        "text": "string",
        "mixed": "string",
        "huge": "string",
        "nothing": "string",
        "_content": "binary",
    }
    columns = table.to_pydict()
    assert columns["whole"] == [1, -5, 2**63 - 1, None, None]
    assert columns["mixed"] == ["1", "a", '{"b":[1]}', None, None]
    assert columns["number"] == [1.0, 2.5, None, None, None]
    noted = json.loads(table.schema.metadata[b"fuploader.columns"])
    assert noted["columns"]["huge"] == "string"
    assert noted["found"] is True


def test_a_whole_number_that_no_double_holds_is_null_in_a_column_of_doubles(tmp_path: Path) -> None:
    numbers = [2**53, 2**53 + 1, 0.5]
    contents = {f"{n}.json": b'{"n":%s}' % str(n).encode() for n in numbers}
    found = pq.read_table(packed(tmp_path, "parquet", contents, {}).path).to_pydict()
    assert dict(zip(found["_name"], found["n"], strict=True)) == {
        f"{2**53}.json": 2.0**53,
        f"{2**53 + 1}.json": None,
        "0.5.json": 0.5,
    }


def test_no_field_is_taken_for_a_column_of_ours(tmp_path: Path) -> None:
    content = b'{"_Content":"no","_NAME":"no","_HEADER_cmd":"no","_Header_x":"no","id":1}'
    headers = {"a.json": '{"cmd":"thumb"}'}
    path = packed(tmp_path, "parquet", {"a.json": content}, headers).path
    found = queried("select _name, _header_cmd, _content from FILE", path)
    assert found == [("a.json", "thumb", content)]
    assert pq.read_schema(path).names == ["_name", "_header_cmd", "id", "_content"]


def test_long_names_of_fields_do_not_fill_the_footer(tmp_path: Path) -> None:
    fields = {f"{n}{'x' * 300}": n for n in range(40)} | {"ü" * 127: 1, "ü" * 128: 2}
    contents = {f"{n}.json": json.dumps(fields).encode() for n in range(4)}
    file = packed(tmp_path, "parquet", contents, {}, frame_bytes=1)
    assert pq.read_schema(file.path).names == ["_name", "ü" * 127, "_content"]
    with Archive.open(file.path) as archive:
        assert archive.read("3.json") == contents["3.json"]


def test_given_columns_are_all_there_are_and_what_does_not_fit_is_null(tmp_path: Path) -> None:
    contents = {
        "1.json": b'{"id":1,"score":2,"other":1}',
        "2.json": b'{"id":"x","score":true}',
        "3.json": b'{"id":1e3,"score":"0.5"}',
        "4.json": b'{"id":9223372036854775808,"score":0.5}',
    }
    types = Columns({"id": "int64", "score": "double", "missing": "bool"})
    with segment(tmp_path / "segment", contents) as source:
        path = write_archive(tmp_path / "a.parquet", source, form="parquet", columns=types).path
    columns = pq.read_table(path).to_pydict()
    assert list(columns) == ["_name", "id", "score", "missing", "_content"]
    assert columns["id"] == [1, None, None, None]
    assert columns["score"] == [2.0, None, None, 0.5]
    assert columns["_content"] == list(contents.values())


def test_without_content_the_columns_are_there_and_reading_says_why_not(tmp_path: Path) -> None:
    contents = {f"{n}.json": b'{"id":%d}' % n for n in range(100)} | {"empty": b""}
    with segment(tmp_path / "segment", contents) as source:
        path = write_archive(
            tmp_path / "a.parquet",
            source,
            form="parquet",
            frame_bytes=4096,
            columns=Columns(content=False),
        ).path
    assert queried("select sum(id), count(*) from FILE", path) == [(sum(range(100)), 101)]
    with Archive.open(path) as archive:
        assert [m.name for m in archive.members] == list(contents)
        assert [m.size_bytes for m in archive.members] == list(map(len, contents.values()))
        assert (archive.verify().members, archive.verify().damages) == (101, [])
        for attempt in (
            lambda: archive.read("7.json"),
            lambda: list(archive.files(lambda _: True)),
            lambda: archive.restore(tmp_path / "out"),
        ):
            with pytest.raises(ContentNotKept, match="parquet_content: false"):
                attempt()
    assert files_below(tmp_path / "out") == {}
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    assert Archive.open(InMemory(bytes(content))).verify().damages


def test_endless_fields_give_no_endless_columns(tmp_path: Path) -> None:
    contents = {f"{n}.json": b'{"f%d":1}' % n for n in range(600)}
    path = packed(tmp_path, "parquet", contents, {}).path
    assert len(pq.read_schema(path).names) == 500 + 2


@pytest.mark.parametrize("count", [70_000])
def test_a_zip_of_more_members_than_the_old_format_counts(tmp_path: Path, count: int) -> None:
    contents = {f"{n}": b"" for n in range(count)}
    path = packed(tmp_path, "zip", contents, {}).path
    with Archive.open(path) as archive:
        assert archive.verify().members == count
    assert len(zipfile.ZipFile(io.BytesIO(path.read_bytes())).namelist()) == count
