"""Dead letters are sent back, exported and discarded from the UI, once a person has chosen them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.dead_letters.letters import DeadLetterBox, numbered_dead_letters
from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.delivery.send_letters import waiting_letters
from fuploader_dagster.health.remembered import letters_waiting
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from tests.settings import pipeline
from tests.unit.dead_letters.test_letters import letter

JOBS = ("requeue_job", "export_letters_job", "discard_job")


def with_letters(folder: Path) -> tuple[Pipeline, list[str]]:
    """A pipeline with three dead letters, and their ids."""
    settings = pipeline(folder, source=EmbeddedQueue(path=folder / "queue"))
    DeadLetterBox(settings.layout, 0).keep([letter(b"%d" % n) for n in range(3)])
    return settings, [key for key, _ in numbered_dead_letters(settings.layout)]


def launched(settings: Pipeline, job_name: str, config: dict[str, Any]) -> tuple[bool, str]:
    """A run of a job: whether it succeeded, and what its log and its failure say."""
    name = getattr(Names.of(settings), job_name)
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_definitions(settings).resolve_job_def(name)
        result = job.execute_in_process(
            instance=instance,
            run_config={"ops": {f"{name}_op": {"config": config}}},
            raise_on_error=False,
        )
        said = [entry.user_message for entry in instance.all_logs(result.run_id)]
        said += [
            str(one.step_failure_data.error) for one in result.all_events if one.is_step_failure
        ]
    return result.success, "\n".join(said)


def waiting(settings: Pipeline) -> list[str]:
    return [key for key, _ in waiting_letters(settings.layout)]


def in_the_queue(settings: Pipeline) -> int:
    publisher = settings.source.publisher()
    try:
        return publisher.backlog()
    finally:
        publisher.close()


def test_chosen_letters_go_back_to_the_queue_and_the_others_wait(tmp_path: Path) -> None:
    settings, ids = with_letters(tmp_path)
    success, said = launched(settings, "requeue_job", {"ids": ids[:1]})
    assert success
    assert "sent 1 message to embedded queue" in said
    assert (in_the_queue(settings), waiting(settings)) == (1, ids[1:])
    success, _ = launched(settings, "requeue_job", {"everything": True})
    assert success
    assert (in_the_queue(settings), waiting(settings)) == (3, [])


def test_letters_that_never_became_files_cannot_be_processed_again(tmp_path: Path) -> None:
    settings, ids = with_letters(tmp_path)
    success, said = launched(settings, "requeue_job", {"ids": ids, "to": "stage"})
    assert not success
    assert "nothing was done: pipeline docs has no processor" in said
    assert waiting(settings) == ids


def test_bodies_are_written_into_a_folder_and_existing_files_stay(tmp_path: Path) -> None:
    settings, ids = with_letters(tmp_path)
    folder = tmp_path / "letters"
    config = {"everything": True, "folder": str(folder)}
    success, said = launched(settings, "export_letters_job", config)
    assert success
    assert "wrote 3 bodies" in said
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [b"0", b"1", b"2"]
    mine = folder / ids[0].replace(":", "-")
    mine.write_bytes(b"mine")
    success, said = launched(settings, "export_letters_job", config)
    assert not success
    assert mine.read_bytes() == b"mine"
    assert waiting(settings) == ids


def test_discarded_letters_wait_no_more_and_stay_on_the_disk(tmp_path: Path) -> None:
    settings, ids = with_letters(tmp_path)
    assert letters_waiting(settings.layout) == {"drain": 3}
    success, said = launched(settings, "discard_job", {"ids": ids[1:2]})
    assert success
    assert "1 dead letter is discarded" in said
    assert waiting(settings) == [ids[0], ids[2]]
    assert letters_waiting(settings.layout) == {"drain": 2}
    assert [key for key, _ in numbered_dead_letters(settings.layout)] == ids
    success, said = launched(settings, "discard_job", {"ids": ids})
    assert "2 dead letters are discarded" in said
    assert in_the_queue(settings) == 0


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    "config", [{}, {"ids": ["20260101-w0:1"]}, {"ids": ["20260101-w0:1"], "everything": True}]
)
def test_nothing_happens_without_a_choice_that_is_right(
    tmp_path: Path, job: str, config: dict[str, Any]
) -> None:
    settings, ids = with_letters(tmp_path)
    folder = {"folder": str(tmp_path / "letters")} if job == "export_letters_job" else {}
    success, said = launched(settings, job, {**config, **folder})
    assert not success
    assert "nothing was done: " in said
    assert (in_the_queue(settings), waiting(settings)) == (0, ids)


@pytest.mark.parametrize("job", JOBS)
def test_the_launchpad_shows_all_that_a_job_can_be_told(tmp_path: Path, job: str) -> None:
    settings, _ = with_letters(tmp_path)
    name = getattr(Names.of(settings), job)
    definition = build_definitions(settings).resolve_job_def(name)
    shown = definition.run_config["ops"][f"{name}_op"]["config"]  # type: ignore[index]
    more = {"requeue_job": {"to"}, "export_letters_job": {"folder"}, "discard_job": set()}
    assert set(shown) == {"ids", "everything", *more[job]}
