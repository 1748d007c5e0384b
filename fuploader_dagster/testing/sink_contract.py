"""What every sink does. Subclass `SinkContract`, and tell it about your rows.

    class TestMySink(SinkContract):
        @pytest.fixture
        def settings(self):
            return MySink(...)  # an empty table

        def row(self, number): ...
        def bad_row(self, number): ...
        def numbers(self, settings): ...

A sink that cannot do something names it in `cannot`: `redo` (store a partition again), `reject` (it
takes any row), `note nothing` (a delivery without rows leaves no trace), `tell attempts at once
apart` (two at the same moment store a delivery once, but both may say that they did).
"""

from __future__ import annotations

import threading
import traceback
import tracemalloc
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, NoReturn

import pytest

from fuploader_dagster.contracts.sink import (
    Delivery,
    ItemRows,
    RejectedItem,
    Row,
    Sink,
    SinkSettings,
    StoredRows,
)
from fuploader_dagster.errors import SinkUnavailable

DELIVERY = Delivery("pipeline", "sink", "20261120T234501123Z-node1-s0-000017")
SECRET = "hunter2-of-somebody"  # noqa: S105 - a value that must appear nowhere
MANY = 2_500
"""More items than a sink sends at once."""
LARGE_ITEMS, LARGE_BYTES = 2_000, 20_000
MOST_MEMORY_BYTES = 28 << 20


class OnPurpose(Exception):
    """Raised by a test."""


class SinkContract:
    """The tests. Give them `settings`, `row`, `bad_row` and `numbers`."""

    cannot: ClassVar[Collection[str]] = ()

    @pytest.fixture
    def settings(self) -> SinkSettings:
        """A sink in which nothing is stored yet."""
        raise NotImplementedError

    def row(self, number: int, text: str = "") -> Row:
        """A row that has the number, and a text of any length, and is good."""
        raise NotImplementedError

    def bad_row(self, number: int) -> Row:
        """A row that the service does not take. One of its values has `SECRET` in it, and if
        possible it is that value which is bad."""
        raise NotImplementedError

    def numbers(self, settings: SinkSettings) -> list[int]:
        """The numbers of all rows that are stored, in the order in which they were."""
        raise NotImplementedError

    def needs(self, word: str) -> None:
        """Leave a test out, if the sink cannot do that."""
        if word in self.cannot:
            pytest.skip(f"this sink cannot {word}")

    @pytest.fixture
    def sink(self, settings: SinkSettings) -> Iterator[Sink]:
        opened = settings.sink()
        yield opened
        opened.close()

    @pytest.fixture(autouse=True)
    def _give(self, settings: SinkSettings, sink: Sink) -> None:
        self._settings, self._sink = settings, sink

    def items(self, numbers: Iterable[int], bad: Collection[int] = ()) -> Iterator[ItemRows]:
        """An item for each number, at the position of its number."""
        for number in numbers:
            make = self.bad_row if number in bad else self.row
            yield ItemRows(number, [make(number)])

    def test_rows_are_stored_and_counted(self) -> None:
        stored = self._sink.store(DELIVERY, self.items(range(10)), no_reject)
        assert (stored.rows, stored.already_there) == (10, False)
        assert stored.address
        assert self.numbers(self._settings) == list(range(10))

    def test_a_delivery_that_is_stored_is_found_and_its_items_are_not_read(self) -> None:
        first = self._sink.store(DELIVERY, self.items(range(10)), no_reject)
        for again in (self._sink, self._settings.sink()):
            found = again.store(DELIVERY, unreadable(), no_reject)
            again.close()
            assert found == StoredRows(first.rows, first.address, already_there=True)
        assert self.numbers(self._settings) == list(range(10))

    def test_an_item_may_have_no_row_or_many(self) -> None:
        items = [
            ItemRows(0, []),
            ItemRows(1, [self.row(1), self.row(2), self.row(3)]),
            ItemRows(2, []),
            ItemRows(3, [self.row(4)]),
        ]
        assert self._sink.store(DELIVERY, items, no_reject).rows == 4
        assert self.numbers(self._settings) == [1, 2, 3, 4]

    def test_an_empty_delivery_is_stored_too(self) -> None:
        assert self._sink.store(DELIVERY, [], no_reject).rows == 0
        assert self.numbers(self._settings) == []
        self.needs("note nothing")
        assert self._sink.store(DELIVERY, unreadable(), no_reject).already_there
        assert self.numbers(self._settings) == []

    def test_deliveries_are_told_apart(self) -> None:
        others = [
            DELIVERY,
            Delivery("pipeline", "sink", "20261120T234501123Z-node1-s0-000018"),
            Delivery("pipeline", "sink", "20261120T234501123Z-NODE1-s0-000017"),
            Delivery("pipeline", "other", DELIVERY.partition),
            Delivery("other", "sink", DELIVERY.partition),
        ]
        for number, delivery in enumerate(others):
            assert not self._sink.store(delivery, self.items([number]), no_reject).already_there
        assert self.numbers(self._settings) == list(range(5))

    @pytest.mark.parametrize("read", [0, 1, MANY])
    def test_nothing_is_stored_if_reading_the_items_fails(self, read: int) -> None:
        def failing() -> Iterator[ItemRows]:
            yield from self.items(range(read))
            raise OnPurpose

        with pytest.raises(OnPurpose):
            self._sink.store(DELIVERY, failing(), no_reject)
        assert self.numbers(self._settings) == []
        assert self._sink.store(DELIVERY, self.items(range(3)), no_reject).rows == 3
        assert self.numbers(self._settings) == [0, 1, 2]

    @pytest.mark.parametrize(
        "bad",
        [{0}, {19}, {7}, {0, 19}, {3, 4, 5}, set(range(20)) - {11}, set(range(1, 20))],
        ids=["first", "last", "one", "ends", "some", "all but one", "all but the first"],
    )
    def test_bad_items_are_rejected_and_all_others_are_stored(self, bad: set[int]) -> None:
        self.needs("reject")
        rejected: list[RejectedItem] = []
        stored = self._sink.store(DELIVERY, self.items(range(20), bad), rejected.extend)
        assert [one.position for one in rejected] == sorted(bad)
        assert all(one.reason for one in rejected)
        assert stored.rows == 20 - len(bad)
        assert self.numbers(self._settings) == [n for n in range(20) if n not in bad]

    def test_bad_items_are_found_among_many(self) -> None:
        self.needs("reject")
        bad = {5, 999, 1_000, 1_001, MANY - 1}
        calls: list[Sequence[RejectedItem]] = []
        stored = self._sink.store(DELIVERY, self.items(range(MANY), bad), calls.append)
        assert [[one.position for one in call] for call in calls] == [sorted(bad)]
        assert stored.rows == MANY - len(bad)
        assert self.numbers(self._settings) == [n for n in range(MANY) if n not in bad]

    def test_an_item_with_one_bad_row_is_rejected_whole(self) -> None:
        self.needs("reject")
        items = [
            ItemRows(0, [self.row(0)]),
            ItemRows(1, [self.row(1), self.bad_row(2), self.row(3)]),
            ItemRows(2, [self.row(4)]),
        ]
        rejected: list[RejectedItem] = []
        assert self._sink.store(DELIVERY, items, rejected.extend).rows == 2
        assert [one.position for one in rejected] == [1]
        assert self.numbers(self._settings) == [0, 4]

    def test_nothing_is_stored_if_the_bad_items_cannot_be_kept(self) -> None:
        self.needs("reject")

        def reject(_: Sequence[RejectedItem]) -> NoReturn:
            assert self.numbers(self._settings) == []
            raise OnPurpose

        with pytest.raises(OnPurpose):
            self._sink.store(DELIVERY, self.items(range(5), {2}), reject)
        assert self.numbers(self._settings) == []
        rejected: list[RejectedItem] = []
        assert self._sink.store(DELIVERY, self.items(range(5), {2}), rejected.extend).rows == 4
        assert len(rejected) == 1

    def test_no_value_is_part_of_a_reason_an_error_or_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.needs("reject")
        caplog.set_level("DEBUG")
        rejected: list[RejectedItem] = []
        self._sink.store(DELIVERY, self.items(range(5), {1, 3}), rejected.extend)
        assert SECRET not in str(rejected)

        def reject(_: Sequence[RejectedItem]) -> NoReturn:
            raise OnPurpose

        another = Delivery("pipeline", "sink", "another")
        with pytest.raises(OnPurpose) as caught:
            self._sink.store(another, self.items(range(10, 15), {11}), reject)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert all(SECRET not in str(error) for error in chain(caught.value))
        assert SECRET not in caplog.text

    def test_two_processes_that_store_the_same_store_it_once(self) -> None:
        both = threading.Barrier(2, timeout=60)

        def read() -> Iterator[ItemRows]:
            yield from self.items(range(5))
            if not second_begins.wait(60):
                raise AssertionError("the other one did not begin")
            yield from self.items(range(5, 10))

        second_begins = threading.Event()

        def store(number: int) -> StoredRows:
            sink = self._settings.sink()
            try:
                both.wait()
                if number == 1:
                    second_begins.set()
                return until_it_works(lambda: sink.store(DELIVERY, read(), no_reject))
            finally:
                sink.close()

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(store, range(2)))
        if "tell attempts at once apart" not in self.cannot:
            assert sorted(one.already_there for one in results) == [False, True]
        assert {one.rows for one in results} == {10}
        assert self.numbers(self._settings) == list(range(10))

    def test_different_deliveries_can_be_stored_at_once(self) -> None:
        def store(number: int) -> StoredRows:
            sink = self._settings.sink()
            delivery = Delivery("pipeline", "sink", f"partition-{number}")
            items = list(self.items(range(number * 100, number * 100 + 100)))
            try:
                return until_it_works(lambda: sink.store(delivery, items, no_reject))
            finally:
                sink.close()

        with ThreadPoolExecutor(4) as pool:
            assert all(one.rows == 100 for one in pool.map(store, range(8)))
        assert sorted(self.numbers(self._settings)) == list(range(800))

    def test_a_redo_replaces_what_was_stored(self) -> None:
        self.needs("redo")
        again = Delivery(DELIVERY.pipeline, DELIVERY.sink, DELIVERY.partition, redo=1)
        another = Delivery("pipeline", "sink", "another")
        self._sink.store(DELIVERY, self.items(range(5)), no_reject)
        self._sink.store(another, self.items(range(10, 15)), no_reject)
        stored = self._sink.store(again, self.items(range(5)), no_reject)
        assert (stored.rows, stored.already_there) == (5, False)
        assert sorted(self.numbers(self._settings)) == [*range(5), *range(10, 15)]
        for delivery in (again, DELIVERY):  # an attempt of the earlier one may still be under way
            found = self._sink.store(delivery, unreadable(), no_reject)
            assert (found.rows, found.already_there) == (5, True)
        assert sorted(self.numbers(self._settings)) == [*range(5), *range(10, 15)]

    def test_a_redo_that_fails_leaves_what_was_stored(self) -> None:
        self.needs("redo")

        def failing() -> Iterator[ItemRows]:
            yield from self.items(range(3))
            raise OnPurpose

        self._sink.store(DELIVERY, self.items(range(5)), no_reject)
        again = Delivery(DELIVERY.pipeline, DELIVERY.sink, DELIVERY.partition, redo=1)
        with pytest.raises(OnPurpose):
            self._sink.store(again, failing(), no_reject)
        assert self.numbers(self._settings) == list(range(5))

    def test_memory_does_not_grow_with_the_items(self) -> None:
        def large() -> Iterator[ItemRows]:
            for number in range(LARGE_ITEMS):
                yield ItemRows(number, [self.row(number, f"{number:0{LARGE_BYTES}d}")])

        self._sink.store(Delivery("pipeline", "sink", "warm"), self.items([LARGE_ITEMS]), no_reject)
        tracemalloc.start()
        try:
            assert self._sink.store(DELIVERY, large(), no_reject).rows == LARGE_ITEMS
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < MOST_MEMORY_BYTES < LARGE_ITEMS * LARGE_BYTES

    def test_a_sink_can_be_closed_twice_and_used_again(self) -> None:
        self._sink.close()
        self._sink.store(DELIVERY, self.items([1]), no_reject)
        self._sink.close()
        self._sink.close()
        assert self._sink.store(DELIVERY, unreadable(), no_reject).already_there
        assert self.numbers(self._settings) == [1]

    def test_an_examination_finds_nothing_wrong_and_changes_nothing(self) -> None:
        before = [one for one in self._settings.examine() if one.verdict != "good"]
        self._sink.store(DELIVERY, self.items(range(3)), no_reject)
        after = [one for one in self._settings.examine() if one.verdict != "good"]
        assert (before, after) == ([], [])
        assert self.numbers(self._settings) == [0, 1, 2]
        assert self._settings.describe()


def no_reject(rejected: Sequence[RejectedItem]) -> None:
    raise AssertionError(f"rejected: {rejected}")


def unreadable() -> Iterator[ItemRows]:
    """Items that must not be read."""
    raise AssertionError("the items were read")
    yield


def until_it_works(store: Callable[[], StoredRows]) -> StoredRows:
    """As the engine does: what may pass is tried again."""
    for _ in range(20):
        try:
            return store()
        except SinkUnavailable as error:
            last = error
    raise last


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it refers to, shown or not."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            waiting += [one.__cause__, one.__context__]
            yield one
