"""Strategies: a user's functions, found by name, called sync or async, blamed by name."""

from __future__ import annotations

import asyncio
import functools
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from fuploader_dagster.contracts.functions import load_reference, reference_to
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import StrategyError
from fuploader_dagster.settings.user_functions import as_key_strategy, call, call_packer, object_key
from tests.settings import intake, pipeline

PARTITION = PartitionKey(datetime(2026, 11, 20, 23, 45, 1, tzinfo=timezone.utc), "n1", 2, 17)
HERE = "tests.unit.settings.test_user_functions"


def top_level(argument: Any) -> Any:
    return argument


class Tools:
    @staticmethod
    def static(argument: Any) -> Any:
        return argument

    @classmethod
    def of_class(cls, argument: Any) -> Any:
        return argument

    def method(self, argument: Any) -> Any:
        return argument


async def async_packer(directory: Path) -> Path:
    await asyncio.sleep(0)
    made = directory.with_suffix(".7z")
    made.write_bytes(b"packed")
    return made


def packer_without_result(_: Path) -> None:
    return None


def exits(_: Any) -> None:
    sys.exit(3)


def raises_half_a_character(_: Any) -> None:
    raise ValueError("name \ud800")


def key_of_a_user(archive: str) -> Any:
    return KEYS[archive]


KEYS: dict[str, Any] = {}


@pytest.mark.parametrize("function", [top_level, Tools.static, Tools.of_class, async_packer, print])
def test_a_function_of_a_module_is_found_again_by_its_reference(function: Any) -> None:
    assert load_reference(reference_to(function)) == function


@pytest.mark.parametrize(
    "function",
    [
        lambda body: body,
        functools.partial(top_level, argument="hunter2"),
        Tools().method,
        Tools(),
    ],
)
def test_a_function_that_workers_cannot_import_is_refused(tmp_path: Path, function: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        intake(tmp_path, parser=function)
    (error,) = caught.value.errors(include_input=False)
    assert error["loc"] == ("parser",)
    assert "hunter2" not in error["msg"]


def test_a_lambda_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="define a function at the top level of a module"):
        intake(tmp_path, parser=lambda body: body)


def test_a_nested_function_is_refused(tmp_path: Path) -> None:
    def nested(body: bytes) -> bytes:
        return body

    with pytest.raises(ValidationError, match="cannot be imported by a worker"):
        intake(tmp_path, parser=nested)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("no colon", "not of the form"),
        ("a:b:c", "not of the form"),
        ("os.path:", "not of the form"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("tests.unit.settings.broken_module:f", "RuntimeError: broken on purpose"),
        ("os.path:nothing", "has no 'nothing'"),
        ("os:path.nothing", "has no 'path.nothing'"),
        ("os:sep", "neither a function nor"),
    ],
)
def test_a_reference_that_leads_nowhere_says_why(tmp_path: Path, reference: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        intake(tmp_path, parser=reference)


def test_objects_and_references_are_the_same_setting(tmp_path: Path) -> None:
    one = pipeline(tmp_path, parser=top_level, packer=async_packer, key=top_level)
    two = pipeline(
        tmp_path,
        parser=f"{HERE}:top_level",
        packer=f"{HERE}:async_packer",
        key=f"{HERE}:top_level",
    )
    assert one.intake() == two.intake()
    assert one.packer is two.packer


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{archive}", "a.tar.zst"),
        ("{pipeline}/{sealed_at:%Y%m%d/%H}/{archive}", "docs/20261120/23/a.tar.zst"),
        ("{node}/{slot}/{number:03d}/{partition}.x", f"n1/2/017/{PARTITION}.x"),
        ("ü ö/{archive}", "ü ö/a.tar.zst"),
    ],
)
def test_a_key_template_is_filled_with_the_slots_values(template: str, key: str) -> None:
    made = object_key(
        as_key_strategy(template),
        pipeline="docs",
        partition=PARTITION,
        archive="a.tar.zst",
        zone=timezone.utc,
    )
    assert made == key


@pytest.mark.parametrize(
    ("moment", "zone", "key"),
    [
        ((2026, 11, 20, 23, 45), "UTC", "20261120/23:45+0000"),
        ((2026, 11, 20, 23, 45), "Asia/Shanghai", "20261121/07:45+0800"),
        ((2026, 11, 20, 3, 0), "America/Los_Angeles", "20261119/19:00-0800"),
        # Where clocks go back, 02:30 comes twice; where they go forward, it does not come at all.
        ((2026, 10, 25, 0, 30), "Europe/Berlin", "20261025/02:30+0200"),
        ((2026, 10, 25, 1, 30), "Europe/Berlin", "20261025/02:30+0100"),
        ((2026, 3, 29, 0, 59), "Europe/Berlin", "20260329/01:59+0100"),
        ((2026, 3, 29, 1, 0), "Europe/Berlin", "20260329/03:00+0200"),
    ],
)
def test_the_time_in_a_key_is_that_of_its_zone(
    moment: tuple[int, int, int, int, int], zone: str, key: str
) -> None:
    partition = PartitionKey(datetime(*moment, tzinfo=timezone.utc), "n1", 2, 17)
    made = object_key(
        "{sealed_at:%Y%m%d/%H:%M%z}/{archive}",
        pipeline="docs",
        partition=partition,
        archive=f"{partition}.tar.zst",
        zone=ZoneInfo(zone),
    )
    assert made == f"{key}/{partition}.tar.zst"


def test_both_hours_where_clocks_go_back_give_different_keys() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=timezone.utc)
    partitions = [PartitionKey(first + timedelta(hours=hour), "n1", 2, 17) for hour in range(3)]
    keys = {
        object_key(
            "{sealed_at:%Y%m%d/%H%M}/{archive}",
            pipeline="docs",
            partition=partition,
            archive=f"{partition}.tar.zst",
            zone=ZoneInfo("Europe/Berlin"),
        )
        for partition in partitions
    }
    assert len(keys) == 3
    assert {key.rpartition("/")[0] for key in keys} == {"20261025/0230", "20261025/0330"}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("fixed", "must contain {archive} or {partition}"),
        ("{pipeline}", "must contain {archive} or {partition}"),
        ("", "must contain {archive} or {partition}"),
        ("{archive.__class__}", "unknown fields"),
        ("{archive[0]}", "unknown fields"),
        ("{0}{archive}", "unknown fields"),
        ("{archive:{width}}", "cannot be filled in"),
        ("{archive", "malformed"),
        ("{archive!q}", "cannot be filled in"),
        ("{slot:%Y}{archive}", "cannot be filled in"),
        ("a//{archive}", "unusable keys"),
        ("./{archive}", "unusable keys"),
        ("{archive}/", "unusable keys"),
        ("a\\{archive}", "unusable keys"),
        ("a\n{archive}", "control characters"),
        ("x" * 1000 + "{archive}", "bytes, not 1 to 1023"),
        (7, "neither a function nor"),
    ],
)
def test_a_key_template_that_cannot_work_is_refused_before_anything_is_sealed(
    template: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        as_key_strategy(template)


@pytest.mark.parametrize(
    "made", [None, 7, b"k", "", "/k", "k/", "a//b", "a/../b", "a\\b", "a\0b", "\ud800", "k" * 1024]
)
def test_an_unusable_key_is_a_strategy_error_that_keeps_the_slot(made: Any) -> None:
    KEYS["a.7z"] = made
    with pytest.raises(StrategyError, match=r"key for a\.7z is unusable.*the slot is kept"):
        object_key(
            key_of_a_user, pipeline="docs", partition=PARTITION, archive="a.7z", zone=timezone.utc
        )


def test_a_key_generator_that_raises_is_named() -> None:
    with pytest.raises(StrategyError, match=f"{HERE}:key_of_a_user raised KeyError: 'b.7z'"):
        object_key(
            key_of_a_user, pipeline="docs", partition=PARTITION, archive="b.7z", zone=timezone.utc
        )


def test_a_key_of_1023_bytes_is_the_longest() -> None:
    KEYS["a.7z"] = "ü" * 511 + "k"
    made = object_key(
        key_of_a_user, pipeline="docs", partition=PARTITION, archive="a.7z", zone=timezone.utc
    )
    assert len(made.encode()) == 1023


def test_an_async_packer_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "slot"
    folder.mkdir()
    assert call_packer(async_packer, folder).read_bytes() == b"packed"


@pytest.mark.parametrize("packer", [packer_without_result, top_level])
def test_a_packer_that_returns_no_file_is_named(tmp_path: Path, packer: Any) -> None:
    with pytest.raises(StrategyError, match=rf"{HERE}:{packer.__name__} returned .* is not a file"):
        call_packer(packer, tmp_path)


def test_a_function_that_exits_does_not_take_its_process_with_it() -> None:
    with pytest.raises(StrategyError, match="exits raised SystemExit: 3"):
        call(exits, None, what="packer")


def test_every_error_text_can_be_written_to_a_file() -> None:
    with pytest.raises(StrategyError) as caught:
        call(raises_half_a_character, None, what="packer")
    assert str(caught.value).encode("utf-8").endswith(b"name \\ud800")
