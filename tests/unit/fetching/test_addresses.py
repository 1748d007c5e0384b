"""Which addresses a task names."""

from __future__ import annotations

import json

import pytest

from fuploader_dagster.errors import BadItem
from fuploader_dagster.fetching.addresses import Address, addresses_of

URL = "https://h/x"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([URL], [Address(URL)]),
        (URL, [Address(URL)]),
        ([], []),
        ([{"url": URL, "fn": "a.jpg"}], [Address(URL, "a.jpg")]),
        ([{"url": URL, "name": "b"}, URL], [Address(URL, "b"), Address(URL)]),
        ([{"url": URL, "fn": "", "name": "b"}], [Address(URL, "b")]),
        ([{"url": URL, "fn": 7, "more": 1}], [Address(URL, "7")]),
        ({"url": URL, "fn": None}, [Address(URL)]),
    ],
)
def test_a_field_has_addresses_or_objects(value: object, found: list[Address]) -> None:
    task = json.dumps({"job": {"files": value}}).encode()
    assert addresses_of(task, urls="job.files", most=5) == found


@pytest.mark.parametrize(
    ("task", "urls", "reason"),
    [
        (b"no json", "a", "the task is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[" * 100_000, "a", "the task is not JSON"),
        (b"[1]", "a", "the task has no field a"),
        (b'{"a": 1}', "a", "element 0 of a is neither an address nor an object with `url`"),
        (b'{"a": [null]}', "a", "element 0 of a is neither an address nor an object with `url`"),
        (b'{"a": [{"url": 5}]}', "a", "element 0 of a is neither an address"),
        (b'{"a": [{"url": "x", "fn": []}]}', "a", ""),
        (b'{"a": [{"url": "x", "fn": true}]}', "a", "the name in element 0 of a is not text"),
        (b'{"a": ["x", "x", "x", "x", "x", "x"]}', "a", "the task has 6 addresses; max_files is 5"),
    ],
)
def test_a_task_that_cannot_be_read_is_a_bad_item(task: bytes, urls: str, reason: str) -> None:
    with pytest.raises(BadItem) as caught:
        addresses_of(task, urls=urls, most=5)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("7301", "https://h/7301.jpg"),
        (7301, "https://h/7301.jpg"),
        ("a/../b?x=1#y", "https://h/a%2F..%2Fb%3Fx%3D1%23y.jpg"),
        ("@evil/", "https://h/%40evil%2F.jpg"),
        ("ü", "https://h/%C3%BC.jpg"),
    ],
)
def test_a_template_takes_fields_and_nothing_in_them_leads_elsewhere(
    value: object, found: str
) -> None:
    task = json.dumps({"id": value}).encode()
    assert addresses_of(task, url="https://h/{id}.jpg", most=1) == [Address(found)]


@pytest.mark.parametrize("value", ["", None, True, 1.5, [], {}])
def test_a_template_takes_only_text_and_whole_numbers(value: object) -> None:
    with pytest.raises(BadItem, match="field id is neither text nor a whole number"):
        addresses_of(json.dumps({"id": value}).encode(), url="https://h/{id}", most=1)


def test_a_task_may_be_lines() -> None:
    task = "\ufeffhttps://h/1\r\n\n# a comment\n  https://h/2 \tzwei.txt\nhttps://h/3  drei 3.txt"
    assert addresses_of(task.encode(), most=3) == [
        Address("https://h/1"),
        Address("https://h/2", "zwei.txt"),
        Address("https://h/3", "drei 3.txt"),
    ]


def test_lines_that_are_not_text_are_a_bad_item() -> None:
    with pytest.raises(BadItem, match="not a list of addresses in UTF-8"):
        addresses_of(b"\xff\xfe", most=3)
