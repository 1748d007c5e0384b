"""Poison messages: which ones are blamed for a worker's death, and which are decoded no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.errors import BadMessage, SourceUnavailable
from fuploader_dagster.processing.decoder import Decoder, File
from fuploader_dagster.processing.poison import (
    FORGOTTEN_AFTER_SECONDS,
    Suspect,
    Suspects,
    is_poison,
    was_handling,
)
from fuploader_dagster.settings.pipeline import Intake
from tests.settings import intake


class Died(BaseException):
    """The worker's process ended here."""


DEADLY: set[bytes] = set()
DECODED: list[bytes] = []


def parse(body: bytes) -> dict[str, str]:
    DECODED.append(body)
    if body in DEADLY:
        raise Died
    if body == b"greedy":
        raise MemoryError
    return {"file_name": body.decode()}


def again(*bodies: bytes) -> list[Message]:
    return [Message(body, number, True, None) for number, body in enumerate(bodies)]


def in_good_order() -> None:
    """How the broker takes an acknowledgement."""


def one_life(
    settings: Intake,
    batch: list[Message],
    now: float = 0.0,
    worker: int = 0,
    settle: Callable[[], object] = in_good_order,
) -> str:
    """A worker starts, decodes the batch, and dies or settles it: what became of each message."""
    DECODED.clear()
    suspects = Suspects(settings.layout, worker, max_deliveries=4, clock=lambda: now)
    suspects.blame_after_crash()
    results: list[File | BadMessage] = []
    decoder = Decoder(settings)
    try:
        for attempt in suspects.attempts(batch):
            with suspects.recorded(attempt):
                results += (
                    [attempt.verdict] if attempt.verdict else decoder.decode(attempt.messages)
                )
                settle()
    except Died:
        assert was_handling(settings.layout, worker)
        return "died"
    except SourceUnavailable:
        assert not was_handling(settings.layout, worker)
        return "trouble"
    assert not was_handling(settings.layout, worker)
    return "".join("." if isinstance(result, File) else "x" for result in results)


@pytest.mark.parametrize(
    ("suspect", "max_deliveries", "poison"),
    [
        (Suspect(together=9), 4, False),
        (Suspect(together=1, alone=1), 4, False),
        (Suspect(together=9, alone=1), 4, False),
        (Suspect(together=1, alone=2), 4, True),
        (Suspect(together=1, alone=1), 3, True),
    ],
)
def test_a_message_is_poison_for_what_it_did_alone(
    suspect: Suspect, max_deliveries: int, poison: bool
) -> None:
    assert is_poison(suspect, max_deliveries) is poison


def test_the_deadly_one_among_many_is_found_and_the_others_are_acquitted(tmp_path: Path) -> None:
    settings = intake(tmp_path, parser=parse, message_format="raw")
    DEADLY.clear()
    DEADLY.add(b"d")
    batch = again(b"a", b"b", b"d", b"c")
    assert one_life(settings, batch) == "died"
    assert DECODED == [b"a", b"b", b"d"]
    assert one_life(settings, batch) == "died"  # alone for the first time
    assert one_life(settings, batch) == "died"
    assert one_life(settings, batch) == "..x."
    assert DECODED == [b"a", b"b", b"c"]
    assert one_life(settings, again(b"a", b"b")) == ".."
    # The dead letter was settled: what is sent back after the parser was corrected starts over.
    DEADLY.clear()
    assert one_life(settings, batch) == "...."


def test_workers_know_each_others_suspects_and_old_ones_are_forgotten(tmp_path: Path) -> None:
    settings = intake(tmp_path, parser=parse, message_format="raw")
    DEADLY.clear()
    DEADLY.add(b"d")
    assert one_life(settings, again(b"a", b"d"), worker=0) == "died"
    assert one_life(settings, again(b"x"), worker=0) == "."
    assert one_life(settings, again(b"d", b"a"), worker=1) == "died"
    assert one_life(settings, again(b"d", b"a"), worker=1) == "died"
    assert one_life(settings, again(b"d", b"a"), worker=1) == "x."
    for now in (0, 0, 0, FORGOTTEN_AFTER_SECONDS + 1):  # without the last one three would do
        assert one_life(settings, again(b"d"), worker=2, now=now) == "died"
    assert one_life(settings, again(b"d"), worker=2, now=FORGOTTEN_AFTER_SECONDS + 1) == "x"


def test_first_deliveries_are_blamed_for_nothing_but_it_is_known_that_messages_were_handled(
    tmp_path: Path,
) -> None:
    settings = intake(tmp_path, parser=parse, message_format="raw")
    DEADLY.clear()
    batch = [message._replace(redelivered=False) for message in again(b"a", b"d")]
    assert one_life(settings, batch) == ".."
    DEADLY.add(b"d")
    for _ in range(9):
        assert one_life(settings, batch) == "died"  # and its supervisor knows: see `one_life`
    assert not (settings.layout.suspects / "known.json").exists()


def test_a_note_that_cannot_be_read_only_makes_the_counting_start_over(tmp_path: Path) -> None:
    settings = intake(tmp_path, parser=parse, message_format="raw")
    DEADLY.clear()
    settings.layout.suspects.mkdir(parents=True)
    (settings.layout.suspects / "known.json").write_bytes(b"\0" * 40)
    (settings.layout.suspects / "w0").write_bytes(b"T" + b"x" * 50)
    assert one_life(settings, again(b"a")) == "."


def test_trouble_with_a_name_is_blamed_on_no_message(tmp_path: Path) -> None:
    settings = intake(tmp_path, parser=parse, message_format="raw")
    DEADLY.clear()

    def broken() -> None:
        raise SourceUnavailable("the broker is gone")

    for _ in range(9):
        assert one_life(settings, again(b"a", b"b"), settle=broken) == "trouble"
    assert one_life(settings, again(b"a", b"b")) == ".."


def test_what_cannot_be_stored_is_found_as_what_cannot_be_decoded(tmp_path: Path) -> None:
    settings = intake(tmp_path, parser=parse, message_format="raw")
    DEADLY.clear()

    def bug() -> None:
        if DECODED[-1] == b"d":
            raise Died

    batch = again(b"a", b"d")
    outcomes = [one_life(settings, batch, settle=bug) for _ in range(4)]
    assert outcomes == ["died", "died", "died", ".x"]


def test_what_lies_before_a_suspect_is_settled_before_the_suspect_is_decoded(
    tmp_path: Path,
) -> None:
    settings = intake(tmp_path, parser=parse, message_format="raw")
    DEADLY.clear()
    DEADLY.add(b"d")
    batch = again(b"a", b"b", b"d", b"c")
    assert one_life(settings, batch) == "died"
    settled: list[list[bytes]] = []
    assert one_life(settings, batch, settle=lambda: settled.append(list(DECODED))) == "died"
    assert settled == [[b"a"], [b"a", b"b"]]


def test_out_of_memory_costs_one_message_and_nothing_more_is_decoded_by_this_process(
    tmp_path: Path,
) -> None:
    settings = intake(tmp_path, parser=parse, message_format="raw")
    DEADLY.clear()
    decoder = Decoder(settings)
    batch = again(b"a", b"greedy", b"b")
    assert decoder.decode(batch) == [File("a", b'{"file_name": "a"}')]
    assert not decoder.exhausted  # what was before it may have been what took the memory
    (bad,) = decoder.decode(batch[1:])
    assert isinstance(bad, BadMessage)
    assert "raised MemoryError" in str(bad)
    assert decoder.exhausted
