"""The settings of `kind: fetch`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fuploader_dagster import Fetch
from fuploader_dagster.errors import BadItem
from fuploader_dagster.fetching.addresses import addresses_of, rest_of


@pytest.mark.parametrize(
    "values",
    [
        {"urls": "a", "url": "https://h/{id}"},
        {"urls": "a..b"},
        {"url": "https://h/"},
        {"url": "https://h/{}"},
        {"url": "{scheme}://h/"},
        {"allow_hosts": ["http://h"]},
        {"deny_hosts": ["h:80"]},
        {"headers": {"*.h": {"A": "b"}}},
        {"headers": {"h": {"A b": "c"}}},
        {"headers": {"h": {"Range": "c"}}},
        {"headers": {"h": {"A": "b\nc"}}},
        {"proxy": "socks5://h:1"},
        {"proxy": "nonsense"},
        {"min_success": 1.5},
        {"min_success": -1},
        {"min_success": "some"},
        {"batch": 2},
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Fetch(**values)


@pytest.mark.parametrize(
    ("min_success", "addresses", "needed"),
    [
        ("all", 7, 7),
        ("all", 0, 0),
        (0, 7, 0),
        (1, 7, 1),
        (9, 7, 7),
        (0.5, 7, 4),
        (0.9, 10, 9),
        (0.01, 1, 1),
    ],
)
def test_how_many_addresses_have_to_be_fetched(
    min_success: Any, addresses: int, needed: int
) -> None:
    assert Fetch(min_success=min_success).needed(addresses) == needed


def test_secrets_are_not_shown_and_do_not_decide_what_a_slot_was_processed_with() -> None:
    one, other = (
        Fetch(headers={"h": {"Authorization": text}}, proxy=f"http://me:{text}@h:1")
        for text in ("a-secret", "another-secret")
    )
    assert "secret" not in repr(one)
    assert "secret" not in str(one.model_dump(mode="json"))
    assert one.version() == other.version()
    assert one.version() != Fetch(urls="a").version()


@pytest.mark.parametrize(
    ("content", "urls"),
    [
        (b'{"a": {"b": ["http://h/0", {"url": "http://h/1", "fn": "x"}, "http://h/2"]}}', "a.b"),
        (b"http://h/0\n# comment\n\nhttp://h/1 x y\nhttp://h/2\n", None),
    ],
)  # fmt: skip
def test_the_rest_of_a_task_asks_for_what_is_missing_and_nothing_else(
    content: bytes, urls: str | None
) -> None:
    every = addresses_of(content, urls=urls, most=9)
    rest = rest_of(content, [0, 1], urls=urls)
    assert addresses_of(rest, urls=urls, most=9) == every[:2]
    with pytest.raises(BadItem):
        addresses_of(rest, urls="other", most=9)
