"""What fetched files are called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from fuploader_dagster.fetching.failures import Refused
from fuploader_dagster.fetching.names import (
    check_given_name,
    disposition_name,
    name_of,
    safe_name,
)
from fuploader_dagster.processing.envelope import check_file_name


@pytest.mark.parametrize(
    ("given", "url", "headers", "name"),
    [
        ("a.jpg", "http://h/b.png", {"Content-Disposition": "attachment; filename=c.gif"}, "a.jpg"),
        ("a", "http://h/b.png?x=.exe", {}, "a.png"),
        ("a", "http://h/b", {"Content-Disposition": "attachment; filename=c.gif"}, "a.gif"),
        ("a", "http://h/b", {"Content-Type": "image/jpeg; q=1"}, "a.jpg"),
        ("a", "http://h/b", {}, "a"),
        ("", "http://h/b.png", {"Content-Disposition": "attachment; filename=c.gif"}, "c.gif"),
        ("", "http://h/d/b.png?x=/y.gif#z", {}, "b.png"),
        ("", "http://h/", {}, "file"),
        ("", "http://h/", {"Content-Type": "text/html"}, "file.html"),
        ("", "http://h/b", {"Content-Type": "application/octet-stream"}, "b"),
        ("", "http://h/%2e%2e%2fetc%2fpasswd", {}, "_._etc_passwd"),
        ("", "http://h/a%00b%0a.txt", {}, "a_b_.txt"),
        ("", "http://h/%E4%BD%A0.txt", {}, "你.txt"),
        ("", "http://h/.htaccess", {}, "_htaccess"),
        ("v1.2.3 final", "http://h/x.zip", {}, "v1.2.3 final.zip"),
    ],
)
def test_names(given: str, url: str, headers: dict[str, str], name: str) -> None:
    assert name_of(given, URL(url, encoded=True), headers) == name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("attachment; filename=a.txt", "a.txt"),
        ('attachment; filename="a b.txt"', "a b.txt"),
        (r'attachment; filename="a\"b\\c.txt"', r'a"b\c.txt'),
        ("attachment; FILENAME=a.txt; filename=b.txt", "a.txt"),
        ("attachment; filename=a.txt; filename*=UTF-8''%e2%82%ac.txt", "€.txt"),
        ("attachment; filename*=UTF-8'en'b.txt; filename=a.txt", "b.txt"),
        ("attachment; filename*=iso-8859-1''%A3.txt", "£.txt"),
        ("attachment; filename*=UTF-8''%ff; filename=a.txt", "a.txt"),
        ("attachment; filename*=utf-16''x; filename=a.txt", "a.txt"),
        ("attachment; filename*=nonsense; filename=a.txt", "a.txt"),
        ('attachment; filename="%e2%82%ac.txt"', "€.txt"),
        ("attachment; filename=\udce2\udc82\udcac.txt", "€.txt"),
        ('attachment; x="; filename=b"; filename=a', "a"),
        ("inline", ""),
        ("", ""),
        ("filename=a.txt", ""),
        ('attachment; filename="', ""),
    ],
)
def test_the_file_name_in_content_disposition(value: str, name: str) -> None:
    assert disposition_name(value) == name


@given(st.text(max_size=400))
def test_any_name_from_the_network_becomes_one_that_files_can_have(text: str) -> None:
    name = safe_name(text)
    assert safe_name(name) == name
    if name:
        check_file_name(name)
        check_given_name(name)
        assert not name.startswith(".")
        assert len(name.encode()) <= 200


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", ".", "a\0", "x" * 256, "\ud800"])
def test_a_name_in_a_task_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="cannot be used"):
        check_given_name(name)
