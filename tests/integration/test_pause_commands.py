"""`fuploader pause` and `resume`, and what obeys them without Dagster."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fuploader_dagster import (
    pause_pipeline,
    recover_pipeline,
    resume_pipeline,
    run_pipeline,
    ship_pipeline,
)
from fuploader_dagster.errors import Paused
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from tests.drains import MARK, files, publish, snapshot, wait_for
from tests.integration.test_cli import configure, fuploader, status
from tests.settings import archived_files, pipeline, sealed


@pytest.fixture
def settings(tmp_path: Path) -> Pipeline:
    return pipeline(tmp_path, source=EmbeddedQueue(path=tmp_path / "queue"), min_free_bytes=MARK)


def test_a_person_pauses_sees_it_and_resumes(tmp_path: Path) -> None:
    configure(tmp_path)
    done = fuploader(tmp_path, "pause", "docs", "--reason", "the \x1b[31mindex", "--intake")
    assert done.returncode == 0, done.stderr
    assert "docs: intake paused" in done.stdout
    assert "\x1b" not in done.stdout
    found = status(tmp_path)["parts"]
    assert [found[part]["wanted"] for part in ("intake", "shipping")] == ["paused", "runs"]
    assert "intake is paused since" in fuploader(tmp_path, "status").stdout
    again = fuploader(tmp_path, "pause", "docs", "--reason", "a second one")
    assert "it was paused before: intake since" in again.stdout
    assert "[31mindex" in again.stdout
    assert "docs: intake and shipping resumed" in fuploader(tmp_path, "resume", "docs").stdout
    assert "is paused" not in fuploader(tmp_path, "status").stdout


@pytest.mark.parametrize("name", ["nothing", "../docs", "do cs", "docs\n", "\x1b[31m", "", "*"])
def test_an_unknown_name_is_a_sentence_that_lists_the_names(tmp_path: Path, name: str) -> None:
    configure(tmp_path)
    done = fuploader(tmp_path, "pause", name)
    assert done.returncode == 2
    assert "choose one of docs by its name" in done.stderr
    assert "\x1b" not in done.stderr
    assert not list(tmp_path.rglob("pause.json"))


def test_ship_refuses_while_the_shipping_is_paused_and_does_it_despite_that(tmp_path: Path) -> None:
    configure(tmp_path)
    settings = pipeline(tmp_path, source=EmbeddedQueue(path=tmp_path / "queue"))
    sealed(settings, {"a.json": b"a"})
    fuploader(tmp_path, "pause", "docs", "--shipping", "--reason", "the store moves")
    refused = fuploader(tmp_path, "ship")
    assert refused.returncode == 3
    assert "the shipping of docs is paused since" in refused.stderr
    assert "the store moves" in refused.stderr
    assert archived_files(tmp_path / "objects") == {}
    assert fuploader(tmp_path, "ship", "--despite-pause").returncode == 0
    assert archived_files(tmp_path / "objects") == {"a.json": [b"a"]}


def test_functions_of_python_obey_a_pause_unless_they_are_told_not_to(settings: Pipeline) -> None:
    sealed(settings, {"a.json": b"a"})
    pause_pipeline(settings, by="ada", reason="the store moves")
    for one in (ship_pipeline, recover_pipeline):
        with pytest.raises(Paused, match="the store moves"):
            one(settings)
    assert ship_pipeline(settings, despite_pause=True).archives == 1
    resume_pipeline(settings, by="ada")
    assert recover_pipeline(settings).failures == ()


def test_run_pipeline_until_empty_waits_for_the_end_of_the_pause(
    settings: Pipeline, tmp_path: Path
) -> None:
    contents = files(100)
    publish(settings, contents)
    pause_pipeline(settings, by="ada", parts=("shipping",))
    ended = threading.Event()

    def run() -> None:
        run_pipeline(settings, until_empty=True, stop=threading.Event())
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: snapshot(settings).stored_messages == 100, settings, "the drain")
    wait_for(lambda: bool(settings.layout.sealed_dirs()), settings, "the seal")
    assert archived_files(tmp_path / "objects") == {}
    assert not ended.is_set()
    resume_pipeline(settings, by="ada")
    thread.join(120)
    assert ended.is_set()
    assert archived_files(tmp_path / "objects").keys() == contents.keys()


def test_run_pipeline_drains_and_ships_despite_a_pause_if_it_is_told_to(
    settings: Pipeline, tmp_path: Path
) -> None:
    contents = files(50)
    publish(settings, contents)
    pause_pipeline(settings, by="ada")
    shipped = run_pipeline(settings, until_empty=True, stop=threading.Event(), despite_pause=True)
    assert shipped.messages == 50
    assert archived_files(tmp_path / "objects").keys() == contents.keys()
