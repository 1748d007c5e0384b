"""Meanwhile: a second thread acts while the first one decodes, and never at another time."""

from __future__ import annotations

import threading

import pytest

from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.intake.meanwhile import Meanwhile

LONG_SECONDS = 60


def test_it_acts_within_the_block_and_only_there() -> None:
    acted = threading.Event()
    inside = False
    outside: list[bool] = []

    def act() -> None:
        outside.append(not inside)
        acted.set()

    meanwhile = Meanwhile(act, interval=0.001)
    for _ in range(50):
        acted.clear()
        inside = True
        with meanwhile.allowed():
            assert acted.wait(LONG_SECONDS)
        inside = False
    meanwhile.close()
    assert not any(outside)


def test_what_goes_wrong_is_raised_at_the_end_of_the_block_once() -> None:
    failed = threading.Event()

    def act() -> None:
        failed.set()
        raise SourceUnavailable("the broker is gone")

    meanwhile = Meanwhile(act, interval=0.001)
    with pytest.raises(SourceUnavailable), meanwhile.allowed():
        assert failed.wait(LONG_SECONDS)
    meanwhile.close()


def test_an_error_of_the_block_itself_comes_first() -> None:
    meanwhile = Meanwhile(lambda: None)
    with pytest.raises(KeyError), meanwhile.allowed():
        raise KeyError
    with meanwhile.allowed():  # and the next block works
        pass
    meanwhile.close()


def test_one_that_was_never_needed_closes_too() -> None:
    Meanwhile(lambda: None).close()
