"""Numbers for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.cli.words import age, counted, size


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("message",), "0 messages"),
        (1, ("message",), "1 message"),
        (2_000, ("message",), "2,000 messages"),
        (1, ("body", "bodies"), "1 body"),
        (3, ("body", "bodies"), "3 bodies"),
        (1, ("message waits", "messages wait"), "1 message waits"),
    ],
)
def test_a_count_agrees_with_its_noun(count: int, words: tuple[str, ...], said: str) -> None:
    assert counted(count, *words) == said


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1_023, "1,023 bytes"),
        (1_024, "1.0 KiB"),
        (1_536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**20, "1.0 MiB"),
        (72_488_714_240, "67.5 GiB"),
        (2**60, "1,024.0 PiB"),
    ],
)
def test_sizes_have_a_unit_that_fits(size_bytes: int, said: str) -> None:
    assert size(size_bytes) == said


@given(st.integers(1024, 2**59))
def test_a_size_is_never_a_thousand_of_its_unit_and_never_less_than_one(size_bytes: int) -> None:
    number = float(size(size_bytes).split()[0].replace(",", ""))
    assert 1 <= number < 1024


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0 s"), (5, "5 s"), (90, "2 min"), (7_200, "2 h"), (1e6, "12 d")]
)
def test_ages_have_a_unit_that_fits(seconds: float, said: str) -> None:
    assert age(seconds) == said
