"""Processing slots: order, failures, resuming, what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.processor import FileResult, Item, Result
from fuploader_dagster.contracts.source import Message
from fuploader_dagster.dead_letters.letters import as_message, numbered_dead_letters, requeued_ids
from fuploader_dagster.delivery.answers import FILE_BYTES, RESULT_BYTES, checked
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.failures import find_failure
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.processor_trouble import find_processor_trouble
from fuploader_dagster.delivery.reprocess import process_again
from fuploader_dagster.delivery.slot_in_work import MOST_BYTES
from fuploader_dagster.processing.decoder import Decoder, File
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.outcomes import FAILED
from fuploader_dagster.slots.processed import ProcessedSlot, find_processed
from fuploader_dagster.slots.sealing import SealedSlot
from tests.processors_for_tests import Script, begun_when_quiet, calls, most_at_once, script
from tests.settings import pipeline, sealed


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    calls.clear()
    begun_when_quiet.clear()
    most_at_once[:] = [0, 0]
    yield


def processed(settings: Pipeline, slot: SealedSlot) -> ProcessedSlot:
    (outcome,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(outcome, Done), outcome
    found = find_processed(slot, settings.layout)
    assert found is not None
    assert outcome.processed == found.seal
    return found


def results(slot: ProcessedSlot) -> list[str]:
    return [entry.name for entry in slot.entries()]


def made(folder: Path, *, process: Any = None, **values: Any) -> Pipeline:
    return pipeline(folder, process=process or Script(), **values)


def test_results_come_in_the_order_of_the_inputs_however_long_each_takes(tmp_path: Path) -> None:
    settings = made(tmp_path)
    files = {f"f{n:03d}": script(seconds=(n % 7) / 500, results=n % 3) for n in range(200)}
    found = processed(settings, sealed(settings, files))
    wanted = [
        f"results/f{n:03d}" if number == 0 else f"results/f{n:03d}~2"
        for n in range(200)
        for number in range(n % 3)
    ]
    assert results(found) == wanted
    assert found.seal.inputs == 200
    assert found.seal.results == len(wanted)
    assert most_at_once[1] == settings.process.concurrency  # type: ignore[union-attr]


def test_results_that_wait_for_an_item_before_them_count_as_memory(tmp_path: Path) -> None:
    settings = made(tmp_path, process=Script(concurrency=16))
    times = 2**20 // len("f00-0")
    files = {"f00": script(waits=True)} | {f"f{n:02}": script(times=times) for n in range(1, 64)}
    assert len(results(processed(settings, sealed(settings, files)))) == 64
    assert begun_when_quiet[0] <= MOST_BYTES // 2**20 + 16 + 2


def test_results_of_all_slots_of_a_step_count_together(tmp_path: Path) -> None:
    settings = made(tmp_path, process=Script(concurrency=16))
    times = 2**20 // len("f00-0")
    files = {"f00": script(waits=True)} | {f"f{n:02}": script(times=times) for n in range(1, 16)}
    slots = [sealed(settings, files, slot=number) for number in range(4)]
    outcomes = list(process_partitions([slot.seal.partition for slot in slots], settings))
    assert all(isinstance(one, Done) for one in outcomes), outcomes
    assert begun_when_quiet[0] <= MOST_BYTES // 2**20 + 16 + 4


def test_a_result_counts_as_memory_beside_its_content(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    item = Item("i", b"{}", folder=tmp_path)
    files = [FileResult("n", tmp_path / "file", 0, bytes(32), headers={"etag": "x" * 500})] * 100
    assert checked(files, item, most_bytes=1).size_bytes > 100 * (500 + FILE_BYTES)
    assert checked([Result(b"")] * 100, item, most_bytes=1).size_bytes >= 100 * RESULT_BYTES


def test_what_is_bad_becomes_a_dead_letter_and_the_others_go_on(tmp_path: Path) -> None:
    settings = made(tmp_path)
    bad = {
        "bad": script(bad="not an image"),
        "raises": script(**{"raise": "what"}),
        "name": script(name="../x"),
        "large": script(times=30, results=1),
        "poison": script(poison="bad"),
        "retries": script(retries=99),
        "kind": script(kind="\ud800"),
        "number": script(name=7),
    }
    settings = made(tmp_path, process=Script(max_result_bytes=100))
    files = {"a": script(), **bad, "z": script()}
    found = processed(settings, sealed(settings, files))
    assert results(found) == ["results/a", "results/z"]
    letters = {
        letter.item.name: letter
        for _, letter in numbered_dead_letters(settings.layout)
        if letter.item
    }
    assert letters.keys() == bad.keys()
    assert [letters[name].item.position for name in files if name in bad] == list(range(1, 9))  # type: ignore[union-attr]
    assert all(letters[name].body == bad[name] for name in bad)
    assert "not an image" in letters["bad"].reason
    assert "ValueError: what" in letters["raises"].reason
    assert "after 4 attempts" in letters["retries"].reason
    assert found.seal.failed == len(bad)
    lines = [count for line in found.outcomes() for count in line.results]
    assert lines == [1, *[FAILED] * 8, 1]


def test_of_a_batch_with_a_bad_item_only_that_item_suffers(tmp_path: Path) -> None:
    settings = made(tmp_path, process=Script(batch=10))
    files = {f"f{n}": script(**({"poison": "bad"} if n == 17 else {})) for n in range(25)}
    found = processed(settings, sealed(settings, files))
    assert len(results(found)) == 24
    (letter,) = [letter for _, letter in numbered_dead_letters(settings.layout)]
    assert letter.item is not None
    assert (letter.item.name, letter.item.position) == ("f17", 17)


def test_a_processor_that_works_for_nobody_costs_no_item(tmp_path: Path) -> None:
    switch = tmp_path / "on"
    settings = made(tmp_path, process=Script(switch=switch, max_retries=2))
    slots = [sealed(settings, {f"f{n}": script() for n in range(40)}, slot=k) for k in range(3)]
    outcomes = list(process_partitions([slot.seal.partition for slot in slots], settings))
    assert all(isinstance(one, Failed) and one.unavailable for one in outcomes)
    assert "the handler is switched off" in outcomes[0].error  # type: ignore[union-attr]
    assert not list(numbered_dead_letters(settings.layout))
    trouble = find_processor_trouble(settings.layout)
    assert trouble is not None
    assert trouble.attempts == 1
    switch.touch()
    assert all(len(results(processed(settings, slot))) == 40 for slot in slots)
    assert find_processor_trouble(settings.layout) is None
    failure = find_failure(settings.layout, slots[0].seal.partition)
    assert failure is not None
    assert failure.stage == "process"


def test_a_single_item_that_always_fails_is_blamed_once_the_processor_worked_for_others(
    tmp_path: Path,
) -> None:
    settings = made(tmp_path)
    alone = sealed(settings, {"alone": script(retries=99)})
    (outcome,) = process_partitions([alone.seal.partition], settings)
    assert isinstance(outcome, Failed)
    processed(settings, sealed(settings, {"other": script()}, slot=1))
    assert processed(settings, alone).seal.failed == 1


def test_a_failure_that_another_item_may_have_caused_is_tried_alone_at_last(tmp_path: Path) -> None:
    settings = made(tmp_path, process=Script(max_retries=2, concurrency=8))
    files = {f"f{n}": script(retries=2 * (n == 5), shared=True, seconds=0.002) for n in range(60)}
    assert processed(settings, sealed(settings, files)).seal.failed == 0
    assert calls["f5"] == 3


@pytest.mark.timeout(60)
def test_several_items_that_are_tried_alone_take_turns(tmp_path: Path) -> None:
    """Each holds a place when it begins to wait for all of them."""
    settings = made(tmp_path, process=Script(max_retries=1, concurrency=4))
    files = {f"f{n}": script(retries=1, shared=True, seconds=0.002) for n in range(12)}
    assert processed(settings, sealed(settings, files)).seal.failed == 0
    assert set(calls.values()) == {2}


def test_after_a_crash_only_what_was_in_work_is_processed_again(tmp_path: Path) -> None:
    settings = made(tmp_path, process=Script(concurrency=2), commit_messages=5, prefetch_count=10)
    files = {f"f{n:02d}": script() for n in range(50)}
    slot = sealed(settings, files)

    with pytest.raises(KeyboardInterrupt):
        list(process_partitions([slot.seal.partition], settings, stop_after(20)))
    found = processed(settings, slot)
    assert results(found) == [f"results/{name}" for name in files]
    assert sum(calls.values()) <= 50 + 4 * 2 + 5


def stop_after(items: int) -> Any:
    def stop(_partition: str, done: int, _all: int, _failed: int) -> None:
        if done >= items:
            raise KeyboardInterrupt

    return stop


def test_keys_stay_the_same_until_the_processing_begins_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    process = Script(journal=journal, concurrency=1)
    settings = made(tmp_path, process=process, commit_messages=5, prefetch_count=10)
    slot = sealed(settings, {f"f{n:02d}": script() for n in range(30)})
    with pytest.raises(KeyboardInterrupt):
        list(process_partitions([slot.seal.partition], settings, stop_after(10)))
    first = dict(line.split() for line in journal.read_text().splitlines())
    changed = settings.model_copy(update={"process": process.model_copy(update={"edition": 2})})
    processed(changed, slot)
    second = dict(line.split() for line in journal.read_text().splitlines())
    assert len(second) == 30
    assert not set(first.values()) & set(second.values())


def test_dead_letters_are_processed_again_as_a_slot_of_their_own(tmp_path: Path) -> None:
    process = Script(max_retries=0)
    settings = made(tmp_path, process=process)
    files = {"good": script(), "bad": script(bad="no"), "late": script(retries=1)}
    processed(settings, sealed(settings, files))
    letters = list(numbered_dead_letters(settings.layout))
    assert len(letters) == 2
    (again,) = process_again([letters], settings)
    assert again.seal.reason == "requeued"
    assert {letter_id for letter_id, _ in letters} == requeued_ids(settings.layout)
    assert results(processed(settings, again)) == ["results/late"]
    waiting = [
        letter
        for letter_id, letter in numbered_dead_letters(settings.layout)
        if letter_id not in requeued_ids(settings.layout)
    ]
    assert [one.body for one in waiting] == [files["bad"]]


@pytest.mark.parametrize("message_format", ["envelope", "raw"])
def test_sent_to_the_queue_a_letter_of_an_item_is_a_message_that_becomes_it(
    tmp_path: Path, message_format: str
) -> None:
    settings = made(tmp_path, message_format=message_format)
    processed(settings, sealed(settings, {"good": script(), "bad.json": script(bad="no")}))
    ((_, letter),) = numbered_dead_letters(settings.layout)
    one = as_message(letter, message_format)
    message = Message(one.body, 1, False, one.message_id)
    assert Decoder(settings.intake()).decode([message]) == [File("bad.json", script(bad="no"))]


@pytest.mark.parametrize("batch", [1, 3])
def test_items_that_are_refused_before_anybody_is_asked_do_not_show_that_the_processor_works(
    batch: int, tmp_path: Path
) -> None:
    switch = tmp_path / "on"
    settings = made(tmp_path, process=Script(switch=switch, max_retries=2, batch=batch))
    files = {f"f{n:02d}": script() if n % 3 else b"no JSON" for n in range(30)}
    slot = sealed(settings, files)
    (outcome,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(outcome, Failed) and outcome.unavailable
    assert {letter.body for _, letter in numbered_dead_letters(settings.layout)} <= {b"no JSON"}
    trouble = find_processor_trouble(settings.layout)
    assert trouble is not None
    (outcome,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(outcome, Failed) and outcome.unavailable
    again = find_processor_trouble(settings.layout)
    assert again is not None
    assert again.since == trouble.since
    switch.touch()
    found = processed(settings, slot)
    assert (found.seal.results, found.seal.failed) == (20, 10)
    assert find_processor_trouble(settings.layout) is None


def test_trouble_ends_with_the_slot_that_had_it_though_nobody_is_asked_any_more(
    tmp_path: Path,
) -> None:
    switch = tmp_path / "on"
    settings = made(tmp_path, process=Script(switch=switch, max_retries=0))
    slot = sealed(settings, {"a": script()})
    (outcome,) = process_partitions([slot.seal.partition], settings)
    assert isinstance(outcome, Failed) and outcome.unavailable
    stricter = made(tmp_path, process=Script(switch=switch, max_retries=0, refuses=True))
    assert processed(stricter, slot).seal.failed == 1
    assert find_processor_trouble(settings.layout) is None


@pytest.mark.timeout(120)  # without its place the second waits for ever
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("damaged", [0, 1, 7, 19])
def test_a_slot_that_ends_with_an_error_leaves_its_places_to_the_next_one(
    tmp_path: Path, damaged: int, concurrency: int
) -> None:
    """Also those of items that were begun just before, and have not run yet."""
    settings = made(tmp_path, process=Script(concurrency=concurrency), commit_messages=3)
    files = {f"f{n:02d}": script() for n in range(20)}
    first, second = (sealed(settings, files, slot=number) for number in range(2))
    content = first.segment.read_bytes()
    at = list(first.entries())[damaged].offset
    first.segment.write_bytes(content[:at] + b"?" + content[at + 1 :])
    failed, done = process_partitions([first.seal.partition, second.seal.partition], settings)
    assert isinstance(failed, Failed)
    assert "is not what was sealed" in failed.error
    assert isinstance(done, Done), done
