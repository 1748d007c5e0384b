"""A person on call, with nothing but the UI: each question is answered by what is on the page."""

from __future__ import annotations

import re

import pytest

from tests.browser.person import Person
from tests.browser.project import FILES_PER_TASK, TASKS, Project
from tests.settings import archived_files, archives_in

pytestmark = pytest.mark.timeout(600)


def test_a_drain_that_is_off_while_messages_wait_is_red_until_it_is_on(
    person: Person, project: Project
) -> None:
    person.switch("documents_drain", on=False)
    project.dev.wait_for(lambda: not project.is_drained("documents"), "the worker to leave")
    project.documents("waiting", 300)
    person.open("/assets/documents/queue?view=checks")
    said = person.sees("nobody drains it")
    assert said.startswith("300 messages wait")
    assert "switch on the pipeline's drain sensor" in said
    person.check_says("being_drained", "Failed")
    person.takes_a_picture("check-being-drained", height=620)
    with person.asks("what fails? (the drain is off)"):
        person.looks_at_checks("documents", "queue")
        person.sees("nobody drains it")
    person.open("/locations/fuploader/asset-groups/documents/lineage")
    person.sees("uploaded_archive")
    person.sees_no_more("Loading...")
    person.takes_a_picture("lineage-not-drained", height=720)
    person.switch("documents_drain", on=True)
    person.open("/assets/documents/queue?view=checks")
    person.check_says("being_drained", "Succeeded")
    person.sees_no_more("nobody drains it")
    project.dev.wait_for(lambda: project.has_stored("waiting", 300), "the archives")


def test_a_store_that_is_down_is_red_until_it_is_back(person: Person, project: Project) -> None:
    project.store.kill()
    try:
        project.documents("stuck", 100)
        person.open("/assets/documents/uploaded_archive?view=checks")
        person.click("store_reachable")
        said = person.sees("the object store has not answered since")
        assert "no answer from" in said
        person.check_says("store_reachable", "Failed")
        with person.asks("what fails? (the store is down)"):
            person.looks_at_checks("documents", "uploaded_archive")
            person.click("store_reachable")
            person.sees("the object store has not answered since")
        person.takes_a_picture("check-store-reachable", height=620)
    finally:
        project.store.start()
    person.check_says("store_reachable", "Succeeded")
    person.sees_no_more("the object store has not answered since")
    project.dev.wait_for(lambda: project.has_stored("stuck", 100), "what was sealed meanwhile")
    person.open("/assets/documents/uploaded_archive?view=checks")
    person.check_says("store_reachable", "Succeeded")
    person.check_says("archive_matches_seal", "Succeeded")


def test_bad_messages_are_told_with_their_reason_and_sent_back_by_a_job(
    person: Person, project: Project
) -> None:
    project.bad_documents(10)
    person.open("/assets/documents/dead_letters")
    person.sees("the message is not an envelope")
    with person.asks("what fails? (bad messages)"):
        person.looks_at_checks("documents", "dead_letters")
        person.sees("dead letters within the last hour; the limit is 5")
    person.check_says("dead_letters_below_limit", "Failed")
    person.open("/")
    person.launches("documents_dead_letters_requeue")
    person.sees("nothing was done: give either the ids of dead letters or everything")
    person.open("/")
    person.launches("documents_dead_letters_requeue", everything="true")
    person.sees("sent 10 messages to embedded queue")
    person.open("/")
    project.dev.wait_for(lambda: project.dead_letters("documents") == 20, "the letters again")
    person.launches("documents_dead_letters_discard", everything="true")
    person.sees("10 dead letters are discarded")


def test_that_nothing_is_lost_and_all_keeps_up_is_one_look_each(
    person: Person, project: Project
) -> None:
    project.documents("kept", 300)
    project.dev.wait_for(lambda: project.has_stored("kept", 300), "the archives")
    with person.asks("is anything lost?"):
        person.looks_at_checks("documents", "sealed_slot")
        person.check_says("nothing_lost", "Succeeded")
        person.sees("nothing has been wrong since then")
    with person.asks("is it keeping up?"):
        person.looks_at_checks("documents", "queue")
        person.check_says("keeping_up", "Succeeded")
        person.click("keeping_up")
        person.sees("nothing has been wrong since then")


def test_a_message_is_found_and_replayed(person: Person, project: Project) -> None:
    project.documents("invoice", 300)
    project.dev.wait_for(lambda: project.has_stored("invoice", 300), "the archives")
    with person.asks("where is message X?"):
        person.launches("documents_find", name="invoice-0123*")
        said = person.sees(re.compile(r"invoice-0123\.json \| stored \| .* s3://"))
    address = said.rpartition(" ")[2]
    assert address in [one["address"] for one in project.stored("documents")]
    person.sees("RUN_SUCCESS")

    before = project.messages_stored("documents")
    person.open("/")
    person.launches("documents_replay")
    person.sees("nothing was published: nothing was said of what to replay")
    person.open("/")
    person.launches("documents_replay", name="invoice-012*", dry_run="true")
    person.sees(re.compile("dry run: at most .* will store them again as new files; nothing was"))
    person.sees("RUN_SUCCESS")
    assert project.messages_stored("documents") == before
    person.open("/")
    # The launchpad remembers what was written there.
    person.launches("documents_replay", name="invoice-012*", dry_run="false")
    person.sees(re.compile("confirmed 10 messages of"))
    project.dev.wait_for(lambda: project.messages_stored("documents") == before + 10, "them")


def test_a_new_sink_is_filled_from_archives_by_a_backfill(person: Person, project: Project) -> None:
    project.documents("row", 500)
    project.dev.wait_for(lambda: project.has_stored("row", 500), "the archives")
    project.add_sink()
    person.open("/")
    person.click("Lineage")
    person.click("Reload definitions", role="button")
    person.looks_at("documents", "sink_rows")
    person.materializes_all("documents/sink_rows")
    project.dev.wait_for(lambda: project.rows("row") == 500, "the rows")
    person.open("/assets/documents/sink_rows?view=partitions")
    person.sees("Missing (0)")
    person.looks_at_partition("documents/sink_rows", "1")
    person.sees("rejected")
    addresses = sorted(one["address"] for one in project.stored("documents"))
    person.materializes_all("documents/uploaded_archive")
    project.dev.wait_for(lambda: project.backfills() == ["COMPLETED_SUCCESS"] * 2, "the backfills")
    person.looks_at_partition("documents/uploaded_archive", "1")
    person.sees("View all historical events (2)")
    assert sorted(one["address"] for one in project.stored("documents")) == addresses


def test_slots_that_are_processed_show_what_came_out(person: Person, project: Project) -> None:
    project.pages(600)
    person.open("/assets/pages/processed_slot?view=partitions")
    person.sees(re.compile(r"Materializing \([1-9]"))
    person.takes_a_picture("processing-in-work", height=640)
    person.sees("Materialized (6)")
    person.looks_at_partition("pages/processed_slot", "6")
    person.sees("seconds_p95")
    person.sees("functions of the module app")
    person.takes_a_picture("processed-partition")
    project.dev.wait_for(lambda: project.messages_stored("pages") == 600, "the archives")
    found = archived_files(project.folder / "objects" / "pages")
    assert sum(name.startswith("results/") for name in found) == 600


def test_each_task_of_downloads_is_an_archive_of_its_own(person: Person, project: Project) -> None:
    project.tasks()
    person.open("/assets/tasks/uploaded_archive?view=partitions")
    person.sees(f"Materialized ({TASKS})")
    assert len(archives_in(project.folder / "objects" / "tasks")) == TASKS
    person.looks_at_partition("tasks/processed_slot", "1")
    person.sees("downloads of the addresses in task_info")
    person.sees(re.compile(f"^{FILES_PER_TASK}$"))
    person.takes_a_picture("download-tasks")
    found = archived_files(project.folder / "objects" / "tasks")
    assert sum(name.startswith("results/") for name in found) == TASKS * FILES_PER_TASK
