"""The job that finds a message: its answer is metadata of its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster import build_definitions
from fuploader_dagster.assets import find_job
from fuploader_dagster.contracts.source import Message
from fuploader_dagster.dead_letters.letters import DeadLetterBox
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.settings.pipeline import Pipeline
from tests.settings import pipeline, sealed


def asked(settings: Pipeline, name: str | None) -> dict[str, Any]:
    """The metadata of the run's one step."""
    job = build_definitions(settings).resolve_job_def("docs_find")
    config = None if name is None else {"ops": {"docs_find_op": {"config": {"name": name}}}}
    result = job.execute_in_process(config, instance=dg.DagsterInstance.ephemeral())
    (event,) = [one for one in result.all_events if one.is_successful_output]
    metadata = event.step_output_data.metadata
    return {key: value.value for key, value in metadata.items()}


def rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(record.data) for record in answer["answer"].records]


def test_the_answer_is_a_table_and_json(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    stored = sealed(settings, {"a.json": b"1"}).seal.partition
    list(ship(settings, settings.store.open()))
    here = sealed(settings, {"a.json": b"2"}).seal.partition
    box = DeadLetterBox(settings.layout, 0)
    message = Message(b"[red]\x1b[31m", 1, False, "a.json")
    box.keep([box.letter(message, BadMessage("no\nway"), lambda _: {})])
    answer = asked(settings, "a.json")
    assert answer["found"] == 3
    letter, first, second = rows(answer)
    assert (letter["state"], letter["more"]) == ("dead letter", "drain, waits: no\\nway")
    assert (first["state"], first["partition"]) == ("stored", stored)
    assert first["where"].startswith("file://")
    assert (second["state"], second["partition"]) == ("sealed", here)
    assert [one["state"] for one in answer["json"]] == ["dead letter", "stored", "sealed"]


def test_of_very_many_the_first_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_job, "MOST_SHOWN", 3)
    settings = pipeline(tmp_path)
    sealed(settings, {f"{n}.json": b"" for n in range(9)})
    answer = asked(settings, "*")
    assert (answer["found"], len(rows(answer))) == ("more than 3", 3)


def test_what_nobody_knows_is_no_failure_and_no_name_is_one(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    assert asked(settings, "a.json")["found"] == 0
    assert not (tmp_path / "data").exists()
    with pytest.raises(dg.Failure, match="no name"):
        asked(settings, None)
    with pytest.raises(dg.Failure, match="characters"):
        asked(settings, "*" * 5000)
