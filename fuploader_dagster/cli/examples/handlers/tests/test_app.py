"""What the project's own functions make of a file."""

from __future__ import annotations

from app import anything_else, words
from fuploader_dagster import Item


def test_the_most_frequent_words_are_counted() -> None:
    assert words(Item("a.txt", b"to be or not to be to"), "1") == {"to": 3}


def test_what_no_route_matches_is_turned_round() -> None:
    assert anything_else(Item("a", b"abc")).content == b"cba"
