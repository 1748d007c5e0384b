"""The values of messages that are in keys: which messages belong together."""

from __future__ import annotations

import json
import random
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.settings.split import INVALID, NONE, OTHER
from fuploader_dagster.slots.message_values import Piece, Tally, time_of
from tests.settings import intake

TENANT = "tenant={tenant}/{archive}"


def by(split_by: Any, key: str = TENANT, **values: Any) -> Intake:
    return intake(Path("nowhere"), split_by=split_by, key=key, **values)


def pieces(settings: Intake, *contents: bytes) -> list[Piece]:
    tally = Tally(settings)
    for content in contents:
        tally.add(content)
    return tally.pieces()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"tenant": "acme", "x": [1, {"tenant": 2}]}', "acme"),
        (b' {"x": "\xff", "tenant" : "a/b"} ', "a%2Fb"),
        (b'{"tenant": "a", "tenant": "b"}', "b"),
        (b'{"tenant": 7}', "7"),
        (b'{"tenant": true}', "true"),
        (b'{"tenant": 1e3}', "1000.0"),
        (b'{"tenant": null}', NONE),
        (b'{"tenant": ""}', NONE),
        (b'{"Tenant": "acme"}', NONE),
        (b"{}", NONE),
        (b"", NONE),
        (b"[]", NONE),
        (b'"tenant"', NONE),
        (b"\x00\x01", NONE),
        (b'\xef\xbb\xbf{"tenant": "acme"}', NONE),
        (b'{"tenant": "acme"', NONE),
        (b"[" * 100_000, NONE),
        (b'{"tenant": ' + b"[" * 100_000, NONE),
        (b'{"tenant": "\xff"}', INVALID),
        (b'{"tenant": ["acme"]}', INVALID),
        (b'{"tenant": {"name": "acme"}}', INVALID),
        (b'{"tenant": "' + b"x" * 1_000_000 + b'"}', INVALID),
        (b'{"tenant": ' + b"9" * 1_000_000 + b"}", INVALID),
        (b'{"tenant": 1e999}', INVALID),
        (b'{"tenant": "' + rb"\u0041" * 128 + b'"}', "A" * 128),
    ],
)
def test_a_message_has_a_value_whatever_it_is(content: bytes, text: str) -> None:
    assert pieces(by(["tenant"]), content) == [Piece({"tenant": text}, [0])]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"meta": {"of": {"tenant": "acme"}}}, "acme"),
        ({"meta": {"of": {"tenant": None}}}, NONE),
        ({"meta": {"of": {}}}, NONE),
        ({"meta": {"of": 7}}, NONE),
        ({"meta": 7}, NONE),
        ({}, NONE),
        ({"meta": {"of": {"tenant": {}}}}, INVALID),
    ],
)
def test_a_field_may_be_inside_another(content: Any, text: str) -> None:
    found = pieces(by({"tenant": "meta.of.tenant"}), json.dumps(content).encode())
    assert found == [Piece({"tenant": text}, [0])]


SHANGHAI = ZoneInfo("Asia/Shanghai")
MOMENT = datetime(2026, 11, 20, 23, 45, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-11-20T23:45:01Z", MOMENT),
        ("2026-11-20 23:45:01z", MOMENT),
        ("2026-11-20T23:45:01.5Z", MOMENT.replace(microsecond=500_000)),
        ("2026-11-20T23:45:01,123456789Z", MOMENT.replace(microsecond=123_456)),
        ("2026-11-21T00:45:01+01:00", MOMENT),
        ("2026-11-21T00:45:01+0100", MOMENT),
        ("2026-11-20T15:45:01-08", MOMENT),
        ("20261120T234501Z", MOMENT),
        ("2026-11-21T07:45:01", MOMENT),  # no zone: that of the pipeline
        ("2026-11-21", datetime(2026, 11, 20, 16, tzinfo=timezone.utc)),
        ("20261121", datetime(2026, 11, 20, 16, tzinfo=timezone.utc)),
        ("2026-11-21T07:45", MOMENT.replace(second=0)),
        (1795218301, MOMENT),
        (1795218301.0, MOMENT),
        ("1795218301", MOMENT),
        (1795218301000, MOMENT),
        ("1795218301000", MOMENT),
        (1795218301500, MOMENT.replace(microsecond=500_000)),
        (0, datetime(1970, 1, 1, tzinfo=timezone.utc)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=timezone.utc)),
        ("2026-02-29", None),
        ("2026-13-01T00:00:00Z", None),
        ("2026-11-20T24:00:00Z", None),
        ("2026-11-20T23:45:60Z", None),
        ("2026-11-20T23:45:01+99:00", None),
        ("0001-01-01", None),
        ("9999-12-31T23:59:59Z", None),
        ("1899-12-31T00:00:00Z", None),
        ("2026-11-20T23:45:01Z\n", None),
        ("٢٠٢٦-١١-٢٠", None),
        ("yesterday", None),
        ("2026", None),
        ("", None),
        (1795218301000000, None),
        (10**400, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        ([], None),
        ({}, None),
    ],
)
def test_a_time_is_read_in_the_usual_forms_and_nothing_else(
    value: Any, moment: datetime | None
) -> None:
    assert time_of(value, SHANGHAI) == moment


def test_the_day_of_a_message_is_that_of_the_pipelines_zone() -> None:
    settings = by({"event": "at"}, key="{event:%Y/%m/%d}/{archive}", timezone="Asia/Shanghai")
    contents = [
        *(b'{"at": "2026-11-20T15:59:59Z"}', b'{"at": "2026-11-20T16:00:00Z"}'),
        *(b'{"at": "2026-11-21"}', b'{"at": "never"}', b"{}", b'{"at": ""}', b'{"at": []}'),
    ]
    assert pieces(settings, *contents) == [
        Piece({"event": "20261120T155959000000Z"}, [0]),
        Piece({"event": "20261120T160000000000Z"}, [1, 2]),
        Piece({"event": INVALID}, [3, 6]),
        Piece({"event": NONE}, [4, 5]),
    ]


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%H:%M", "%H:%M:%S", "%s", "%-d.%f"])
def test_the_earliest_time_of_a_piece_is_kept_and_makes_the_same_key(form: str) -> None:
    settings = by({"event": "at"}, key=f"{{event:{form}}}/{{archive}}", split_limit=1000)
    dice = random.Random(form)
    moments = [MOMENT.timestamp() + dice.randrange(86_400_000) / 1000 for _ in range(200)]
    wanted: dict[str, list[float]] = {}
    for moment in moments:
        text = format(datetime.fromtimestamp(moment, timezone.utc), form)
        wanted.setdefault(text, []).append(moment)
    found = pieces(settings, *(json.dumps({"at": moment}).encode() for moment in moments))
    assert [len(one.positions) for one in found] == [len(some) for some in wanted.values()]
    for one, some in zip(found, wanted.values(), strict=True):
        earliest = datetime.fromtimestamp(min(some), timezone.utc)
        assert one.split == {"event": f"{earliest:%Y%m%dT%H%M%S%f}Z"}


def test_a_clock_that_is_off_by_seconds_divides_a_minute() -> None:
    """Shanghai was 8 hours, 5 minutes and 43 seconds ahead until 1901."""
    settings = by({"event": "at"}, "{event:%Y%m%d}/{archive}", timezone="Asia/Shanghai")
    contents = [b'{"at": "1900-06-01T15:54:%02dZ"}' % second for second in (0, 16, 17, 59)]
    assert [one.positions for one in pieces(settings, *contents)] == [[0, 1], [2, 3]]


def test_the_rarest_values_share_the_last_piece() -> None:
    counts = {"a": 1, "b": 5, "c": 2, "d": 9, "e": 2}
    tenants = [tenant for tenant, count in counts.items() for _ in range(count)]
    random.Random(3).shuffle(tenants)
    found = pieces(
        by(["tenant"], split_limit=3), *(json.dumps({"tenant": one}).encode() for one in tenants)
    )
    by_tenant = {one.split["tenant"]: [tenants[at] for at in one.positions] for one in found}
    first_of_two = min("ce", key=tenants.index)
    assert by_tenant.keys() == {"b", "d", first_of_two, OTHER}
    assert list(by_tenant)[-1] == OTHER
    assert sorted(by_tenant[OTHER]) == sorted(
        tenant for tenant in tenants if tenant not in ("b", "d", first_of_two)
    )
    firsts = [one.positions[0] for one in found[:-1]]
    assert firsts == sorted(firsts)


def test_ten_thousand_values_are_a_bounded_number_of_pieces() -> None:
    settings = by({"tenant": "t", "day": "d"}, key="{tenant}/{day:%d}/{archive}", split_limit=7)
    found = pieces(settings, *(b'{"t": %d, "d": %d}' % (n, n) for n in range(10_000)))
    assert len(found) == 8
    assert found[-1].split == {"tenant": OTHER, "day": OTHER}
    assert sorted(at for one in found for at in one.positions) == list(range(10_000))


def test_what_all_messages_share_is_said_for_a_slot_that_is_not_divided() -> None:
    tally = Tally(by(["tenant"]))
    tally.add(b'{"tenant": "a"}')
    tally.add(b'{"tenant": "a"}')
    assert tally.shared() == {"tenant": "a"}
    tally.add(b'{"tenant": "b"}')
    assert tally.shared() == {"tenant": OTHER}
    assert Tally(intake(Path("nowhere"))).shared() == {}


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["2026-11-20", "2026-11-20T23:00:00+09:00", "a", "_other", "..", 1795218301]),
    st.lists(st.integers(), max_size=2),
)
CONTENTS = st.one_of(
    st.binary(max_size=30),
    st.fixed_dictionaries({}, optional={"tenant": VALUES, "at": VALUES}).map(
        lambda fields: json.dumps(fields).encode()
    ),
)
SETTINGS = by({"tenant": "tenant", "day": "at"}, "{tenant}/{day:%Y%m%d}/{archive}", split_limit=5)


@settings(deadline=None)
@given(st.lists(CONTENTS, max_size=30))
def test_each_message_is_in_one_piece_and_the_same_messages_give_the_same_pieces(
    contents: list[bytes],
) -> None:
    found = pieces(SETTINGS, *contents)
    assert sorted(at for one in found for at in one.positions) == list(range(len(contents)))
    assert len(found) <= 6
    assert all(one.positions for one in found)
    assert found == pieces(SETTINGS, *contents)
    splits = [msgspec.json.encode(one.split) for one in found]
    assert len(set(splits)) == len(splits)
    for one in found:
        if OTHER not in one.split.values():
            alone = pieces(SETTINGS, *(contents[at] for at in one.positions))
            assert [each.split for each in alone] == [one.split]
