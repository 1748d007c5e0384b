"""Logs of a whole pipeline: JSON of every process, a message on its way, and nothing twice."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from fuploader_dagster import run_pipeline
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from tests.drains import MARK, files, publish
from tests.integration.test_cli import FUPLOADER, configure, fuploader, until
from tests.processors_for_tests import Script, script
from tests.settings import archives_in, pipeline, sealed

NAME = re.compile(r"message (\S+) is the file (\S+) in (s\d+-\d+)")


def made(folder: Path, **values: object) -> Pipeline:
    return pipeline(
        folder, source=EmbeddedQueue(path=folder / "queue"), min_free_bytes=MARK, **values
    )


def test_a_message_can_be_followed_to_its_archive_in_json_of_all_processes(tmp_path: Path) -> None:
    configure(tmp_path, min_free_bytes=MARK, seal_messages=5, process_count=1)
    command = [str(FUPLOADER), "--log-format", "json", "--log-level", "debug", "drain", "--ship"]
    log = tmp_path / "log"
    publish(made(tmp_path), files(5))
    with log.open("wb") as out:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out)
    try:
        until(lambda: "stored 2" in log.read_text())
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(120)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {one["process"] for one in records} == {"drain", "worker 0"}
    said = [one["message"] for one in records]
    followed = [match for one in said if (match := NAME.match(one))]
    assert {match[2] for match in followed} == set(files(5))
    (place,) = {match[3] for match in followed}
    (partition,) = [one.split()[1].rstrip(":") for one in said if one.startswith("sealed ")]
    assert partition.endswith(f"-{place}")
    (stored,) = [one for one in said if one.startswith(f"stored {partition}: ")]
    assert archives_in(tmp_path / "objects")[0].name in stored


class Looks(threading.Event):
    """Is set after so many looks at what is due."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        if not self._left:
            self.set()
        return super().wait(timeout)


@pytest.mark.parametrize("arguments", [["--log-format", "xml"], ["--log-level", "loud"]])
def test_a_form_that_does_not_exist_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    configure(tmp_path)
    done = fuploader(tmp_path, *arguments, "status")
    assert done.returncode == 2
    assert arguments[1] in done.stderr
    done = fuploader(tmp_path, "status", FUPLOADER_LOG_FORMAT="xml")
    assert (done.returncode, "one of text, json" in done.stderr) == (2, True)


def test_slots_that_wait_for_a_processor_are_logged_when_that_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = made(
        tmp_path,
        process=Script(switch=tmp_path / "on", max_retries=0, partitions_per_run=1),
        process_count=1,
    )
    for slot in range(3):
        sealed(settings, {"a": script()}, slot=slot)
    stop = Looks(10)
    run_pipeline(settings, stop=stop)
    assert stop.is_set()
    waits = [one for one in caplog.messages if "slots wait" in one]
    assert len(waits) == 1
