"""From items to rows: fields of JSON, chosen and renamed, or a user's function."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.processor import Item
from fuploader_dagster.delivery.item_rows import rows_of
from fuploader_dagster.errors import BadItem
from tests.sinks_for_tests import RowsFile, odd_rows, two_rows


def made(content: bytes, **settings: Any) -> list[Any]:
    rows = rows_of(RowsFile(path=Path("unused"), **settings))
    return list(rows(Item("a.json", content)))


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'{"a": 1, "b": {"c": [2]}}', [{"a": 1, "b": {"c": [2]}}]),
        (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        (b"[]", []),
        (b"{}", [{}]),
        (b'{"a": 123456789012345678901234567890}', [{"a": 123456789012345678901234567890}]),
    ],
)
def test_the_fields_of_an_object_are_a_row_and_a_list_of_objects_is_rows(
    content: bytes, rows: list[Any]
) -> None:
    assert made(content) == rows


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"7", b'"secret"', b'[{"a": 1}, "secret"]', b"[" * 100_000]
)
def test_what_is_no_object_is_rejected_without_its_content(content: bytes) -> None:
    with pytest.raises(BadItem) as rejected:
        made(content)
    assert "secret" not in str(rejected.value)


def test_columns_choose_in_their_order_and_rename(tmp_path: Path) -> None:
    content = b'{"id": 7, "name": "n", "more": 1, "address": {"city": "x", "geo": {"lat": 2}}}'
    assert made(content, columns=["name", "id"]) == [{"name": "n", "id": 7}]
    paths = {"doc": "id", "city": "address.city", "lat": "address.geo.lat", "none": "id.x"}
    assert made(content, columns=paths) == [{"doc": 7, "city": "x", "lat": 2, "none": None}]
    assert list(made(content, columns=paths)[0]) == list(paths)
    assert made(b'{"address.city": 1}', columns={"c": "address.city"}) == [{"c": 1}]
    assert made(b'[{"id": 1}, {}]', columns=["id"]) == [{"id": 1}, {"id": None}]


def test_a_function_gives_a_row_rows_or_none() -> None:
    assert made(b"", rows=two_rows) == [{"name": "a.json", "part": n} for n in range(2)]
    assert made(b'"row"', rows=odd_rows) == [{"a": 1}]
    assert made(b'"none"', rows=odd_rows) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'"raise"', "tests.sinks_for_tests:odd_rows raised ValueError in line"),
        (b'"bad"', "not one of ours"),
        (b'"text"', "gave a str, not a row or a list"),
        (b'"numbers"', "gave a row that is no dict of names and values"),
        (b"{", "is not JSON"),
    ],
)
def test_a_function_that_fails_rejects_its_item_without_its_content(
    content: bytes, reason: str
) -> None:
    with pytest.raises(BadItem) as rejected:
        made(content, rows=odd_rows)
    assert reason in str(rejected.value)
    assert "secret" not in str(rejected.value)


def test_settings_that_do_not_go_together_are_refused() -> None:
    for wrong in (
        {"columns": ["a"], "rows": two_rows},
        {"columns": ["a", "a"]},
        {"columns": []},
        {"columns": "a"},
        {"rows": lambda item: None},
        {"rows": "no.such:function"},
    ):
        with pytest.raises(ValueError):
            RowsFile(path=Path("unused"), **wrong)  # type: ignore[arg-type]


TOKENS = [
    *[
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"a"',
        b'"b"',
        b"1",
        b"0",
        b"-0",
        b"-1",
        b"0.5",
        b"-0.0",
    ],
    *[
        b"1e5",
        b"1E+5",
        b"1e-400",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"1e",
        b"-",
        b"true",
        b"null",
        b"NaN",
    ],
    *[b"Infinity", b" ", b"\n", b"\r", b"\t", b"\x0b", b"\xef\xbb\xbf", b"\x00", b"\xc2\xa0", b"/"],
    *[b"12345678901234567890123", b"9223372036854775808", b"-9223372036854775809", b"1e999"],
    *[b"1.7976931348623157e308", b"4.9e-324", b"2.2250738585072011e-308", b"0." + b"12" * 30],
    *[b"1" * 400, b"1" * 5_000, b'"\\u00e4\\n\\/"', b'"\\ud83d\\ude00"', b'"\\ud83d"', b'"\\x"'],
    *[b'"\xc3\xa4"', b'"\xed\xa0\x80"', b'"\xff"', b'"\x7f"', b'"\t"', b"'a'", b'"'],
]
"""Parts of what is JSON, nearly JSON, or JSON to some programs."""


def read_by_python(content: bytes) -> Any:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    rows = found if isinstance(found, list) else [found]
    return rows if all(isinstance(row, dict) for row in rows) else None


@pytest.mark.parametrize("seed", range(4))
def test_json_says_what_python_reads_in_it(seed: int) -> None:
    rng = random.Random(seed)
    read = 0
    for _ in range(20_000):
        one, other, last = rng.choices(TOKENS, k=3)
        content = b'{"a":%b,"b":[%b,{"c":%b}],"a":%b}' % (one, other, last, rng.choice(TOKENS))
        if rng.random() < 0.1:
            content = b"".join(rng.choices(TOKENS, k=4))
        expected = read_by_python(content)
        try:
            rows = made(content)
        except BadItem:
            rows = None
        assert repr(rows) == repr(expected), content
        read += rows is not None
    assert read > 500
