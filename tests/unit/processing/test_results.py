"""From what a function returned to results.

What is refused: tests/faults/test_hostile_functions.py.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import Any

import pytest

from fuploader_dagster import Result
from fuploader_dagster.errors import BadItem
from fuploader_dagster.processing.results import Results

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


def taken(returned: Any, max_bytes: int = 1000) -> list[tuple[bytes, str, str]]:
    return Results(max_bytes).take(returned)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (b"\x00\xff", (b"\x00\xff", "", "")),
        (bytearray(b"ab"), (b"ab", "", "")),
        (memoryview(b"abc")[1:], (b"bc", "", "")),
        ("grüß", ("grüß".encode(), "", TEXT)),
        ("", (b"", "", TEXT)),
        ({"ä": [1, None]}, ('{"ä": [1, null]}'.encode(), "", JSON)),
        (MappingProxyType(OrderedDict(a=1)), (b'{"a": 1}', "", JSON)),
        (0, (b"0", "", JSON)),
        (1.5, (b"1.5", "", JSON)),
        (False, (b"false", "", JSON)),
        (Result(b"x", "a.png", "image/png"), (b"x", "a.png", "image/png")),
        (Result("é"), ("é".encode(), "", "")),  # type: ignore[arg-type]
    ],
)
def test_one_value_is_one_result(returned: Any, expected: tuple[bytes, str, str]) -> None:
    assert taken(returned) == [expected]
    assert taken([returned, returned]) == [expected, expected]


@pytest.mark.parametrize("several", [list, tuple, iter, lambda values: (v for v in values)])
def test_a_list_a_tuple_an_iterator_and_a_generator_hold_a_result_each(several: Any) -> None:
    assert taken(several([])) == []
    assert taken(several([b"1", "2", [3, [4]], Result(b"5")])) == [
        (b"1", "", ""),
        (b"2", "", TEXT),
        (b"[3, [4]]", "", JSON),
        (b"5", "", ""),
    ]


def test_an_async_generator_too() -> None:
    async def results() -> AsyncIterator[Any]:
        yield b"1"
        yield {"a": 2}

    taken_from_it = asyncio.run(Results(100).take_async(results()))
    assert taken_from_it == [(b"1", "", ""), (b'{"a": 2}', "", JSON)]


def test_the_largest_results_that_are_allowed_are_taken_and_one_byte_more_is_not() -> None:
    assert len(taken([b"x" * 400, b"y" * 600])) == 2
    with pytest.raises(BadItem, match="1,000 bytes together"):
        taken([b"x" * 400, b"y" * 601])


def test_a_generator_is_stopped_where_it_becomes_too_much() -> None:
    seen = []

    def results() -> Any:
        for number in range(100):
            seen.append(number)
            yield bytes(300)

    with pytest.raises(BadItem, match="together"):
        taken(results())
    assert seen == [0, 1, 2, 3]
