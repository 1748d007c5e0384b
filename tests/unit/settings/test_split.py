"""`split_by`: what is refused at load, and what a value is in a key."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.settings.loading import dump_intake, load_intake
from fuploader_dagster.settings.split import (
    INVALID,
    LONGEST_VALUE,
    NONE,
    OTHER,
    moment_of,
    stamp,
    text_in_key,
)
from fuploader_dagster.settings.user_functions import as_key_strategy, object_key
from tests.settings import intake, pipeline

PARTITION = PartitionKey(datetime(2026, 11, 20, 23, 45, tzinfo=timezone.utc), "n1", 2, 17)
TENANT = "tenant={tenant}/{archive}"


def key_function(archive: str) -> str:
    return archive


@pytest.mark.parametrize(
    ("given_as", "split_by"),
    [
        (["tenant"], {"tenant": "tenant"}),
        ("tenant", {"tenant": "tenant"}),
        ({"tenant": "meta.tenant"}, {"tenant": "meta.tenant"}),
        ({"tenant": "Kundennummer (neu)"}, {"tenant": "Kundennummer (neu)"}),
    ],
)
def test_fields_are_named_or_listed_and_reach_the_worker(
    tmp_path: Path, given_as: Any, split_by: dict[str, str]
) -> None:
    settings = intake(tmp_path, split_by=given_as, key=TENANT)
    assert settings.split_by == split_by
    assert load_intake(dump_intake(settings)).split_by == split_by


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"split_by": ["tenant"]}, "split_by has tenant, but the key does not"),
        ({"split_by": ["tenant"], "key": key_function}, "needs a key template"),
        ({"split_by": ["day"], "key": TENANT}, r"unknown fields \['tenant'\].*be in split_by"),
        ({"key": TENANT}, r"unknown fields \['tenant'\].*be in split_by"),
        ({"split_by": ["tenant"], "key": TENANT, "message_format": "raw"}, "is raw: if they are"),
        ({"split_by": ["tenant"], "key": "{tenant}"}, "must contain {archive} or {partition}"),
        ({"split_by": ["tenant"], "key": "{tenant!r}/{archive}"}, "the form of a time"),
        ({"split_by": ["tenant"], "key": "{tenant:>9}/{archive}"}, "the form of a time"),
        ({"split_by": ["tenant"], "key": "{tenant:%{slot}}/{archive}"}, "the form of a time"),
        ({"split_by": ["day"], "key": "{day}/{day:%Y}/{archive}"}, "a text in one place, a time"),
        ({"split_by": ["tenant"], "key": "x" * 900 + TENANT}, "bytes, not 1 to 1023"),
        ({"split_by": ["tenant"], "key": "x" * 130 + TENANT}, "a part of it has 265, not 255"),
        ({"split_by": ["slot"], "key": "{slot}/{archive}"}, "slot means something else in a key"),
        ({"split_by": ["sealed_at"]}, "sealed_at means something else in a key"),
        ({"split_by": ["meta.tenant"], "key": TENANT}, r"\{tenant: meta.tenant\} in place"),
        ({"split_by": ["tenant", "tenant"], "key": TENANT}, "named twice"),
        ({"split_by": [{"tenant": "meta.tenant"}], "key": TENANT}, "a list of names, or a mapping"),
        ({"split_by": [7], "key": TENANT}, "a list of names, or a mapping"),
        ({"split_by": None, "key": TENANT}, "valid dictionary"),
        ({"split_by": {"tenant": "a..b"}, "key": TENANT}, "split_by.tenant"),
        ({"split_by": {"a-b": "a"}, "key": TENANT}, "split_by.a-b"),
        ({"split_by": {"_a": "a"}, "key": TENANT}, "split_by._a"),
        ({"split_by": [f"f{n}" for n in range(9)], "key": TENANT}, "at most 8"),
        ({"split_limit": 0}, "greater than or equal to 1"),
        ({"split_limit": 1001}, "less than or equal to 1000"),
    ],
)
def test_what_cannot_work_is_refused_at_load(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        pipeline(tmp_path, **values)


def test_raw_bodies_may_have_fields_if_a_parser_makes_them(tmp_path: Path) -> None:
    values = {"split_by": ["tenant"], "key": TENANT, "parser": key_function}
    assert pipeline(tmp_path, message_format="raw", **values).split_by == {"tenant": "tenant"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("acme", "acme"),
        ("Müller & Söhne", "Müller%20%26%20Söhne"),
        ("客户", "客户"),
        ("a/b", "a%2Fb"),
        ("../../etc", "%2E.%2F..%2Fetc"),
        (".", "%2E"),
        ("..", "%2E."),
        (".tmp-x", "%2Etmp-x"),
        ("_other", "%5Fother"),
        ("_none", "%5Fnone"),
        ("a=b", "a%3Db"),
        ("a\\b", "a%5Cb"),
        ("50%", "50%25"),
        ("a\0b\n", "a%00b%0A"),
        ("\u202e", "%E2%80%AE"),
        (" ", "%20"),
        ("{archive}", "%7Barchive%7D"),
        ("", NONE),
        (None, NONE),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (1.5, "1.5"),
        (float("nan"), INVALID),
        (float("inf"), INVALID),
        (10**200, INVALID),
        ("x" * LONGEST_VALUE, "x" * LONGEST_VALUE),
        ("x" * (LONGEST_VALUE + 1), INVALID),
        ("/" * LONGEST_VALUE, INVALID),
        ("客" * 43, INVALID),
        ("\ud800", INVALID),
        ([], INVALID),
        ({}, INVALID),
        (["a"], INVALID),
    ],
)
def test_a_value_is_harmless_in_a_key(value: Any, text: str) -> None:
    assert text_in_key(value) == text


@given(st.text(min_size=1))
def test_any_text_is_one_part_of_a_name_and_can_be_read_back(value: str) -> None:
    text = text_in_key(value)
    assert 0 < len(text.encode()) <= LONGEST_VALUE
    assert not any(character in text for character in "/\\=?#*:'\"{} ")
    assert text.isprintable()
    assert text not in (NONE, OTHER)
    if text != INVALID:
        assert text[0] not in "._"
        assert unquote(text, errors="strict") == value  # so different ones differ


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_whatever_a_field_holds_the_key_is_usable(value: Any) -> None:
    template = as_key_strategy("{tenant}/{archive}", {"tenant": "tenant"})
    made = object_key(
        template,
        pipeline="docs",
        partition=PARTITION,
        archive="a.tar.zst",
        zone=timezone.utc,
        split={"tenant": text_in_key(value)},
    )
    assert made.endswith("/a.tar.zst")
    assert made.count("/") == 1


@pytest.mark.parametrize(
    ("template", "split", "key"),
    [
        ("{day:%Y/%m/%d}", {"day": "20261120T234500000000Z"}, "2026/11/21"),
        ("{day:%Y}-{day:%H%M}", {"day": "20261120T234500000000Z"}, "2026-0745"),
        ("{day:%Y/%m/%d}", {"day": NONE}, NONE),
        ("y={day:%Y}/m={day:%m}", {"day": OTHER}, "y=_other/m=_other"),
        ("{day:%Y}", {}, NONE),
        ("{day}", {}, NONE),
        ("{day:%Y}", {"day": "acme"}, INVALID),
        ("{day}", {"day": "20261120T234500000000Z"}, "20261120T234500000000Z"),
    ],
)
def test_a_key_is_made_again_of_what_seal_and_receipt_keep(
    template: str, split: dict[str, str], key: str
) -> None:
    """Also with another template than the one that was there when the slot was sealed."""
    made = object_key(
        as_key_strategy(template + "/{archive}", {"day": "at"}),
        pipeline="docs",
        partition=PARTITION,
        archive="a.zip",
        zone=ZoneInfo("Asia/Shanghai"),
        split=split,
    )
    assert made == f"{key}/a.zip"


def test_a_moment_is_kept_to_the_microsecond_and_sorts_as_text() -> None:
    moments = [datetime(1900, 1, 2, tzinfo=timezone.utc), datetime.now(timezone.utc)]
    texts = [stamp(one) for one in moments]
    assert [moment_of(text) for text in texts] == moments
    assert texts == sorted(texts)
    assert moment_of("acme") is None
