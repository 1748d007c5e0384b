"""Logs: one form for all processes, as text or JSON, from the chosen level."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.logs import (
    FORMAT_VARIABLE,
    LEVEL_VARIABLE,
    JsonFormatter,
    LogFormat,
    LogLevel,
    choose,
)

PROGRAM = """
import logging
from fuploader_dagster.settings.logs import log_as
log_as("worker 3")
ours, other = logging.getLogger("fuploader_dagster.slots.slot"), logging.getLogger("botocore")
for log in ours, other:
    for say in log.debug, log.info, log.warning:
        say("%s said\\x1b[31m\\nERROR forged \\u202e", log.name)
try:
    raise ValueError("why\\x1b[2J")
except ValueError:
    ours.exception("it failed")
"""


def logged(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == ""
    assert not {"\x1b", "\u202e"} & set(done.stderr)
    return done.stderr.splitlines()


def test_text_has_time_level_process_and_logger() -> None:
    first, *_ = lines = logged()
    assert " INFO worker 3 [" in first
    assert "] fuploader_dagster.slots.slot: " in first
    assert [line.split()[2] for line in lines if not line.startswith("    ")] == [
        *("INFO", "WARNING", "INFO", "WARNING", "ERROR"),
    ]
    assert lines[-1] == r"    ValueError: why\x1b[2J"


def test_json_is_a_line_for_each_record_with_its_trace() -> None:
    found = [json.loads(line) for line in logged(**{FORMAT_VARIABLE: "json"})]
    assert [one["level"] for one in found] == ["INFO", "WARNING", "INFO", "WARNING", "ERROR"]
    assert {one["process"] for one in found} == {"worker 3"}
    assert found[0]["time"].endswith("+00:00")
    assert r"\nERROR forged" in found[0]["message"]
    assert found[-1]["trace"].endswith(r"ValueError: why\x1b[2J")
    assert "trace" not in found[0]


@pytest.mark.parametrize(
    ("level", "ours", "others"),
    [("debug", 4, 2), ("info", 3, 2), ("warning", 2, 1), ("error", 1, 0), ("nonsense", 3, 2)],
)
def test_the_level_is_that_of_our_package_and_no_other_goes_below_info(
    level: str, ours: int, others: int
) -> None:
    found = [
        json.loads(line)["logger"]
        for line in logged(**{FORMAT_VARIABLE: "json", LEVEL_VARIABLE: level})
    ]
    assert (found.count("fuploader_dagster.slots.slot"), found.count("botocore")) == (ours, others)


def test_options_are_for_children_too_and_what_cannot_be_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "xml")
    monkeypatch.setenv(LEVEL_VARIABLE, "info")
    with pytest.raises(ConfigError, match=f"{FORMAT_VARIABLE} is 'xml'.*one of text, json"):
        choose(None, None)
    choose(LogFormat.json, LogLevel.debug)
    assert (os.environ[FORMAT_VARIABLE], os.environ[LEVEL_VARIABLE]) == ("json", "debug")


def test_a_record_with_letters_of_all_languages_stays_readable() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "%s é", ("消息",), None)
    assert "消息 é" in JsonFormatter("drain").format(record)
