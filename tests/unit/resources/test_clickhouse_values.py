"""What a column of ClickHouse is given, without a server. `tests/clickhouse` asks the engine."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.datatypes.registry import get_from_name
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.contracts.sink import Delivery
from fuploader_dagster.errors import ConfigError, SinkUnavailable
from fuploader_dagster.resources.sinks.clickhouse import ClickHouseSink
from fuploader_dagster.resources.sinks.clickhouse_blocks import Waiting, encoded
from fuploader_dagster.resources.sinks.clickhouse_table import Column
from fuploader_dagster.resources.sinks.clickhouse_values import Kind, kind_of
from fuploader_dagster.resources.sql.values import Unfit
from fuploader_dagster.testing.sink_contract import no_reject
from tests.servers.ports import free_port

DELIVERY = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017")


def kind(name: str) -> Kind:
    found = kind_of(get_from_name(name))
    assert found is not None
    return found


@given(st.integers(-(10**12), 10**12).map(lambda n: Decimal(n).scaleb(-4)))
def test_a_decimal_is_exact_or_refused(value: Decimal) -> None:
    try:
        found = kind("Decimal(9, 2)").value(value)
    except Unfit:
        assert value != round(value, 2) or abs(value) >= 10**7
    else:
        assert found == value == round(value, 2)


@given(st.datetimes(datetime(1900, 1, 1), datetime(2299, 12, 31)), st.integers(-14, 14))  # noqa: DTZ001
def test_a_time_is_the_same_as_text_with_any_offset(moment: datetime, hours: int) -> None:
    there = moment.replace(tzinfo=timezone.utc).astimezone(timezone(timedelta(hours=hours)))
    as_text, as_value = (kind("DateTime64(6)").value(one) for one in (there.isoformat(), there))
    since = moment.replace(tzinfo=timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)
    assert as_text == as_value == since // timedelta(microseconds=1)


@given(st.lists(st.one_of(st.none(), st.integers(-300, 300), st.text(max_size=3)), min_size=1))
def test_a_column_says_of_each_value_what_the_value_alone_gives(values: list[Any]) -> None:
    tiny = kind("Nullable(Int8)")
    made, unfit = tiny.column(values)
    for place, value in enumerate(values):
        if place in unfit:
            with pytest.raises(Unfit):
                tiny.value(value)
        else:
            assert made[place] == tiny.value(value)


@pytest.mark.parametrize(
    "name",
    ["AggregateFunction(sum, Int8)", "Variant(Int8, String)", "JSON(a Int8)", "Array(Dynamic)"],
)
def test_some_types_cannot_be_filled(name: str) -> None:
    assert kind_of(get_from_name(name)) is None


def test_values_that_the_driver_refuses_are_found_and_their_items_left_out() -> None:
    tiny = Column("a", get_from_name("Int8"), Kind(lambda value: value), "Int8")
    text = Column("b", get_from_name("String"), kind("String"), "String")
    items = [0, 1, 1, 2, 3]
    values = [(1, "x"), (2, "x"), (300, "x"), (3, "x"), ("no", "x")]
    (block,), bad = encoded([Waiting([tiny, text], items, values)])
    assert (block.columns, block.rows) == (("a", "b"), 2)
    assert bytes(block.body) == b"\x01a\x04Int8\x01\x03\x01b\x06String\x01x\x01x"
    assert bad == dict.fromkeys((1, 3), "column a: the client cannot send one of the values")


@pytest.mark.parametrize(
    "url",
    ["clickhouse://host", "http:///db", "http://host:x/db", "http://host/a/b", "http://host/?a=1"],
)
def test_a_url_that_cannot_be_right_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match="url must look like") as caught:
        ClickHouseSink(url=url, table="t")  # type: ignore[arg-type]
    assert url not in str(caught.value)


def settings(**more: Any) -> ClickHouseSink:
    url = f"http://user:hunter2@127.0.0.1:{free_port()}/shop"
    return ClickHouseSink.model_validate({"url": url, "table": "t", **more})


def test_a_login_is_not_part_of_a_description() -> None:
    described = settings().describe()
    assert "hunter2" not in described and "user" not in described
    assert "hunter2" not in repr(settings())


def test_a_missing_driver_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clickhouse_connect", None)
    with pytest.raises(ConfigError, match="clickhouse-connect") as caught:
        settings().sink().store(DELIVERY, [], no_reject)
    assert "fuploader-dagster[clickhouse]" in caught.value.hint


def test_a_server_that_is_not_there_may_come(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(SinkUnavailable, match="no answer") as caught:
        settings().sink().store(DELIVERY, [], no_reject)
    assert "hunter2" not in str(caught.value) + caplog.text
