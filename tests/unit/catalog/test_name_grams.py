"""The bits of an archive never leave out a name that it holds, and leave out nearly all others."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.catalog.name_grams import ROWS, gram_rows, grams_of
from fuploader_dagster.catalog.name_lists import join_names

NAMES = st.lists(st.text(st.characters(blacklist_characters="\0"), max_size=30), max_size=30)


def may_hold(rows: list[bytes], *pieces: bytes) -> bool:
    return all(gram.may_be_in(rows[gram.row]) for gram in grams_of(pieces))


@given(NAMES, st.data())
def test_every_piece_of_every_name_may_be_there(names: list[str], data: st.DataObject) -> None:
    joined = join_names(names)
    rows = list(gram_rows(joined))
    assert len(rows) == ROWS
    name = data.draw(st.sampled_from(["", *names])).encode("utf-8", "surrogatepass")
    start = data.draw(st.integers(0, len(name)))
    assert may_hold(rows, name[start:], name[:start])


def test_of_a_thousand_strange_pieces_of_nine_digits_few_may_be_there() -> None:
    rng = random.Random(1)
    names = [f"{rng.randrange(10**19):019d}.json" for _ in range(10_000)]
    rows = list(gram_rows(join_names(names)))
    assert sum(map(len, rows)) < 10 * len(names)
    strange = [f"{rng.randrange(10**9):09d}".encode() for _ in range(1000)]
    passed = sum(may_hold(rows, piece) for piece in strange)
    assert passed < 50


def test_a_piece_too_short_for_a_gram_leaves_nothing_out() -> None:
    assert grams_of([b"", b"abcde"]) == []
    assert len(grams_of([b"abcdefg", b"abcdef"])) == 2
