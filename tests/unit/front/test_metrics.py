"""`/metrics`: who sees which pipelines, and what they see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from tests.servers.front_door import TOKEN, FrontDoor, front_door
from tests.settings import pipeline, sealed
from tests.unit.health.test_metrics import read

ENVIRONMENT = {
    "FUPLOADER_SERVE_TOKEN": TOKEN,
    "READ_A": "a-token-that-may-read-a",
    "PUBLISH_A": "a-token-that-may-publish",
}


def made(folder: Path, name: str, **serve: Any) -> Pipeline:
    source = EmbeddedQueue(path=folder / "queue")
    return pipeline(folder / name, name=name, source=source, serve=serve or True)


def seen(door: FrontDoor, token: str | None) -> tuple[int, set[str]]:
    answer = door.ask("GET", "/metrics", token=token)
    found = set(re.findall(r'fuploader_up{.*pipeline="(\w+)"', answer.body.decode()))
    assert bool(found) == (answer.status == 200)
    return answer.status, found


def test_who_may_read_a_pipeline_sees_its_metrics_and_no_others(tmp_path: Path) -> None:
    tokens = {"read_token": {"env": "READ_A"}, "publish_token": {"env": "PUBLISH_A"}}
    closed = [made(tmp_path, "a", **tokens), made(tmp_path, "b")]
    with front_door(*closed, environment=ENVIRONMENT) as door:
        assert seen(door, TOKEN) == (200, {"a", "b"})
        assert seen(door, ENVIRONMENT["READ_A"]) == (200, {"a"})
        assert seen(door, ENVIRONMENT["PUBLISH_A"]) == (403, set())
        assert seen(door, None) == (401, set())
        assert seen(door, "a-token-of-somebody-else") == (401, set())
    opened = [*closed, made(tmp_path, "c", open_metrics=True)]
    with front_door(*opened, environment=ENVIRONMENT) as door:
        assert seen(door, None) == (200, {"c"})
        assert seen(door, ENVIRONMENT["READ_A"]) == (200, {"a", "c"})


def test_the_answer_is_in_the_text_format_and_names_no_message(tmp_path: Path) -> None:
    settings = made(tmp_path, "docs", open_metrics=True)
    sealed(settings, {"secret-name.json": b"secret content"})
    with front_door(settings, environment=ENVIRONMENT) as door:
        answer = door.ask("GET", "/metrics", token=None)
        assert door.ask("POST", "/metrics", b"").status == 405
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert read(answer.body)["fuploader_unshipped_messages", ""] == 1
    assert b"secret" not in answer.body


@pytest.mark.parametrize("ask_for", ["/metrics/", "/metrics?x=1", "/docs/metrics"])
def test_other_paths_are_no_way_in(ask_for: str, tmp_path: Path) -> None:
    with front_door(made(tmp_path, "docs"), environment=ENVIRONMENT) as door:
        assert door.ask("GET", ask_for, token=None).status in (307, 401, 404)
