"""What every state store must do, written once.

A backend's test module subclasses `StateStoreContract` and gives it a fixture `settings`: its
settings, with nothing in the store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from fuploader_dagster.contracts.state import (
    HIGHEST_NOTE_TIME,
    HIGHEST_NUMBER,
    Claim,
    Commit,
    Note,
    SlotCount,
    Snapshot,
    StateSettings,
    StateStore,
)
from fuploader_dagster.errors import OutdatedCopy, SlotInUse

ROOT_A, ROOT_B = "root a", "root-b"
HERE, THERE = "host one (boot 1), folder 7", "host two (boot 2), folder 7"


def claim_of(
    epoch: int, nonce: str, place: str = HERE, *, slot: int = 0, root: str = ROOT_A
) -> Claim:
    return Claim(slot, root, place, epoch, nonce)


def record(store: StateStore, *slots: SlotCount, root: str = ROOT_A, **totals: int) -> None:
    store.record(Commit(slots=slots, **totals), root_id=root, ttl_seconds=60)  # type: ignore[arg-type]


def _keeps_notes(store: StateStore) -> bool:
    """Whether the store keeps notes, which it need not."""
    return type(store).put_note is not StateStore.put_note


def _knows_epochs(store: StateStore) -> bool:
    """Whether the store tells copies of one storage root apart, which it need not."""
    return type(store).take is not StateStore.take


def commit_under(store: StateStore, claim: Claim, *, number: int = 1, ttl: float = 60) -> None:
    counts = [SlotCount(claim.slot, number, 1, 1)]
    commit = Commit(counts, stored_messages=1, claims=[claim])
    store.record(commit, root_id=claim.root_id, ttl_seconds=ttl)


class StateStoreContract:
    """Needs a fixture `settings`: a `StateSettings` with nothing in its store."""

    @pytest.fixture
    def store(self, settings: StateSettings) -> Iterator[StateStore]:
        opened = settings.store(pipeline="aweme", node="n1")
        opened.open()
        yield opened
        opened.close()

    def test_an_empty_store_gives_an_empty_snapshot(self, store: StateStore) -> None:
        assert store.snapshot() == Snapshot()
        assert store.highest_number(0) == 0
        assert store.sealed(10) == []

    def test_construction_opens_nothing_and_open_and_close_may_be_repeated(
        self,
        settings: StateSettings,
    ) -> None:
        store = settings.store(pipeline="p", node="")
        store.close()
        store.open()
        store.open()
        store.close()
        store.close()
        store.open()
        assert store.snapshot() == Snapshot()
        store.close()

    def test_a_commit_stores_slots_absolutely_and_totals_as_differences(
        self, store: StateStore
    ) -> None:
        record(
            store, SlotCount(0, 7, 10, 1_000), stored_messages=10, stored_bytes=1_000, duplicates=1
        )
        record(store, SlotCount(0, 7, 15, 1_500), SlotCount(1, 2, 1, 5), stored_messages=6)
        record(store, dead_letters=2, stored_bytes=505)
        assert store.snapshot() == Snapshot(
            slots=(SlotCount(0, 7, 15, 1_500), SlotCount(1, 2, 1, 5)),
            owners={0: ROOT_A, 1: ROOT_A},
            sealed_waiting=0,
            stored_messages=16,
            stored_bytes=1_505,
            duplicates=1,
            dead_letters=2,
        )

    def test_counts_beyond_32_bits_are_exact(self, store: StateStore) -> None:
        large = 2**52 + 1
        record(store, SlotCount(0, 1, 3_000_000_000, large), stored_bytes=large)
        record(store, stored_bytes=large)
        snapshot = store.snapshot()
        assert snapshot.slots == (SlotCount(0, 1, 3_000_000_000, large),)
        assert snapshot.stored_bytes == 2 * large

    def test_the_highest_number_of_a_slot_never_falls(self, store: StateStore) -> None:
        for number in (9, 10, 3):
            record(store, SlotCount(0, number, 1, 1))
        assert store.highest_number(0) == 10
        assert store.highest_number(1) == 0
        assert store.snapshot().slots == (SlotCount(0, 3, 1, 1),)

    def test_sealed_keys_wait_in_lexical_order_until_they_are_forgotten(
        self, store: StateStore
    ) -> None:
        store.add_sealed(["k3", "k1"])
        commit = Commit(sealed=["k2", "k10"])
        store.record(commit, root_id=ROOT_A, ttl_seconds=60)
        assert store.sealed(3) == ["k1", "k10", "k2"]
        assert store.sealed(100) == ["k1", "k10", "k2", "k3"]
        assert store.sealed(0) == []
        assert store.snapshot().sealed_waiting == 4
        store.forget_sealed(["k1", "k10", "never queued"])
        assert store.sealed(100) == ["k2", "k3"]

    def test_queueing_a_key_twice_or_none_at_all_changes_nothing(self, store: StateStore) -> None:
        store.add_sealed(["k1"])
        store.add_sealed(["k1"])
        store.add_sealed([])
        store.forget_sealed([])
        assert store.sealed(10) == ["k1"]

    def test_ten_thousand_sealed_keys_go_through_one_commit(self, store: StateStore) -> None:
        keys = [f"20261120T234501{n:04}Z-node1-s0-{n:06}" for n in range(10_000)]
        store.record(Commit(sealed=keys), root_id=ROOT_A, ttl_seconds=60)
        assert store.sealed(20_000) == keys

    def test_strings_of_any_kind_come_back_from_the_sealed_ones_and_can_be_forgotten(
        self, store: StateStore
    ) -> None:
        """Others who can write to the store may put anything there; the tick removes it."""
        odd = ["", "a...b", "x\ny", "\x1b[31m", "../../etc/passwd", "it's", "%_*?[", "k" * 3_000]
        store.add_sealed([*odd, "k1"])
        assert store.sealed(100) == sorted([*odd, "k1"])
        store.forget_sealed(odd)
        assert store.sealed(100) == ["k1"]

    def test_an_absurd_directory_number_is_not_told(self, store: StateStore) -> None:
        for number in (HIGHEST_NUMBER + 1, 10**18 - 1):
            record(store, SlotCount(0, number, 1, 1))
            assert store.highest_number(0) == 0
        record(store, SlotCount(0, 12, 1, 1))
        assert store.highest_number(0) == 12

    def test_a_storage_root_may_have_any_name(self, store: StateStore) -> None:
        for slot, root in enumerate(("it's", "a\nb", "1 2 3", "\u00fc" * 300)):
            store.claim([slot], root, 60)
            assert store.snapshot().owners[slot] == root
            with pytest.raises(SlotInUse):
                store.claim([slot], ROOT_B, 60)
            store.release([slot], root)
        assert store.snapshot().owners == {}

    def test_the_doctors_look_finds_it_good_and_changes_nothing(
        self, settings: StateSettings, store: StateStore
    ) -> None:
        record(store, SlotCount(0, 7, 10, 1_000), stored_messages=10)
        store.add_sealed(["k1"])
        before = store.snapshot()
        for one in settings.examine_for(pipeline="aweme", node="n1"):
            assert one.verdict in ("good", "warning"), one
        assert store.snapshot() == before
        assert store.sealed(10) == ["k1"]
        assert store.highest_number(0) == 7

    def test_a_slot_is_claimed_by_one_root_at_a_time_and_the_error_names_the_holder(
        self,
        store: StateStore,
    ) -> None:
        store.claim([0, 1], ROOT_A, 60)
        with pytest.raises(SlotInUse, match=f"slot 1 .*{ROOT_A}"):
            store.claim([1], ROOT_B, 60)
        assert store.snapshot().owners == {0: ROOT_A, 1: ROOT_A}

    def test_a_claim_takes_all_slots_or_none(self, store: StateStore) -> None:
        store.claim([1], ROOT_A, 60)
        with pytest.raises(SlotInUse):
            store.claim([0, 1, 2], ROOT_B, 60)
        assert store.snapshot().owners == {1: ROOT_A}

    def test_the_holder_renews_its_claim_by_claiming_again(self, store: StateStore) -> None:
        store.claim([0], ROOT_A, 0.3)
        store.claim([0], ROOT_A, 60)
        time.sleep(0.4)
        with pytest.raises(SlotInUse):
            store.claim([0], ROOT_B, 60)

    def test_a_commit_renews_the_claims_of_its_slots(self, store: StateStore) -> None:
        store.claim([0], ROOT_A, 0.3)
        record(store, SlotCount(0, 1, 1, 1))
        time.sleep(0.4)
        with pytest.raises(SlotInUse):
            store.claim([0], ROOT_B, 60)

    def test_a_claim_that_was_not_renewed_lapses(self, store: StateStore) -> None:
        store.claim([0], ROOT_A, 0.2)
        time.sleep(0.3)
        assert store.snapshot().owners == {}
        store.claim([0], ROOT_B, 60)
        assert store.snapshot().owners == {0: ROOT_B}

    def test_a_claim_that_a_clock_set_back_made_hours_long_holds_once_more_and_then_lapses(
        self, store: StateStore
    ) -> None:
        """After the clock was set back, a claim seems to run for hours."""
        store.claim([0], ROOT_A, 8 * 3600)
        with pytest.raises(SlotInUse):
            store.claim([0], ROOT_B, 60)
        store.claim([0], ROOT_A, 8 * 3600)  # its holder lives and keeps it
        until, lapsed = time.monotonic() + 60, False
        while not lapsed:
            assert time.monotonic() < until, "the claim of a root that is gone never lapsed"
            with suppress(SlotInUse):
                store.claim([0], ROOT_B, 0.3)
                lapsed = True

    def test_only_the_holder_releases_a_claim(self, store: StateStore) -> None:
        store.claim([0, 1], ROOT_A, 60)
        store.release([0, 1], ROOT_B)
        assert store.snapshot().owners == {0: ROOT_A, 1: ROOT_A}
        store.release([0, 5], ROOT_A)
        assert store.snapshot().owners == {1: ROOT_A}
        store.claim([0], ROOT_B, 60)

    def test_a_commit_to_a_slot_of_another_root_changes_nothing_at_all(
        self, store: StateStore
    ) -> None:
        store.claim([1], ROOT_B, 60)
        before = store.snapshot()
        with pytest.raises(SlotInUse):
            store.record(
                Commit(
                    slots=[SlotCount(0, 1, 1, 1), SlotCount(1, 1, 1, 1)],
                    sealed=["k"],
                    stored_messages=1,
                ),
                root_id=ROOT_A,
                ttl_seconds=60,
            )
        assert store.snapshot() == before
        assert store.sealed(10) == []
        assert store.highest_number(0) == 0

    def test_pipelines_and_nodes_do_not_see_each_other(self, settings: StateSettings) -> None:
        stores = [
            settings.store(pipeline=pipeline, node=node)
            for pipeline, node in (("a", "1"), ("a", "2"), ("b", "1"))
        ]
        for number, one in enumerate(stores, start=1):
            one.open()
            one.claim([0], f"root{number}", 60)
            record(one, SlotCount(0, number, 1, 1), root=f"root{number}")
            one.add_sealed([f"key{number}"])
        for number, one in enumerate(stores, start=1):
            assert one.highest_number(0) == number
            assert one.sealed(10) == [f"key{number}"]
            assert one.snapshot().owners == {0: f"root{number}"}
            one.close()

    def test_what_one_connection_stores_another_one_sees(self, settings: StateSettings) -> None:
        one, two = (settings.store(pipeline="p", node="n") for _ in range(2))
        record(one, SlotCount(0, 1, 2, 3))
        assert two.snapshot().slots == (SlotCount(0, 1, 2, 3),)
        one.close()
        assert two.highest_number(0) == 1
        two.close()

    def test_threads_may_use_one_store_at_once(self, store: StateStore) -> None:
        def work(slot: int) -> None:
            for number in range(1, 26):
                record(store, SlotCount(slot, number, number, number), stored_messages=1)

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(work, range(4))) == [None] * 4
        snapshot = store.snapshot()
        assert snapshot.stored_messages == 100
        assert snapshot.slots == tuple(SlotCount(slot, 25, 25, 25) for slot in range(4))

    def test_notes_are_shared_by_the_nodes_of_a_pipeline_and_no_other(
        self, settings: StateSettings
    ) -> None:
        one, two, other = (
            settings.store(pipeline=pipeline, node=node)
            for pipeline, node in (("a", "1"), ("a", "2"), ("b", "1"))
        )
        if not _keeps_notes(one):
            one.put_note("intake", Note(1, "x"))
            assert one.notes() == two.notes() == {}
            return
        assert one.notes() == {}
        one.put_note("intake", Note(2, "a\n\u00fc {}"))
        one.put_note("shipping", Note(HIGHEST_NOTE_TIME, ""))
        expected = {"intake": Note(2, "a\n\u00fc {}"), "shipping": Note(HIGHEST_NOTE_TIME, "")}
        assert one.notes() == two.notes() == expected
        assert other.notes() == {}
        for store in (one, two, other):
            store.close()

    def test_of_two_notes_of_one_name_the_later_one_stays_whichever_comes_last(
        self, store: StateStore
    ) -> None:
        late = 1_800_000_000_000_001
        for at in (late - 1, late, late - 2, late, 5):
            store.put_note("intake", Note(at, f"at {at}"))
        store.put_note("intake", Note(late, "of the same moment"))
        kept = {"intake": Note(late, f"at {late}")} if _keeps_notes(store) else {}
        assert store.notes() == kept

    @pytest.fixture
    def epochs(self, store: StateStore) -> StateStore:
        if not _knows_epochs(store):
            pytest.skip("this store knows no epochs")
        return store

    def test_a_store_without_epochs_takes_and_gives_back_as_it_claims_and_releases(
        self, store: StateStore
    ) -> None:
        claim = claim_of(1, "a1")
        assert list(store.take([claim], 60)) == [claim]
        commit_under(store, claim)
        assert store.snapshot().owners == {0: ROOT_A}
        with pytest.raises(SlotInUse, match=ROOT_A):
            store.take([claim_of(1, "b1", THERE, root=ROOT_B)], 60)
        store.give_back([claim])
        assert store.snapshot().owners == {}
        store.take([claim_of(1, "b1", THERE, root=ROOT_B)], 60)

    def test_a_root_in_the_same_place_takes_its_slot_at_once_in_the_next_epoch(
        self, epochs: StateStore
    ) -> None:
        (first,) = epochs.take([claim_of(1, "a1")], 60)
        (second,) = epochs.take([claim_of(2, "a2")], 60)
        assert (first.epoch, second.epoch) == (1, 2)
        (after_loss,) = epochs.take([claim_of(1, "a3")], 60)  # its file of epochs was lost
        assert after_loss == claim_of(3, "a3")

    def test_a_take_over_whose_answer_was_lost_is_repeated_in_the_same_epoch_anywhere(
        self, epochs: StateStore
    ) -> None:
        epochs.take([claim_of(1, "a1")], 0.2)
        assert list(epochs.take([claim_of(1, "a1")], 0.2)) == [claim_of(1, "a1")]
        time.sleep(0.3)  # its disk is attached to another machine
        assert list(epochs.take([claim_of(1, "a1", THERE)], 60)) == [claim_of(1, "a1", THERE)]

    def test_a_commit_of_an_earlier_epoch_changes_nothing_even_if_the_later_one_is_over(
        self, epochs: StateStore
    ) -> None:
        (old,) = epochs.take([claim_of(1, "a1")], 60)
        (new,) = epochs.take([claim_of(2, "a2")], 60)
        commit_under(epochs, new)
        epochs.give_back([new])
        before = epochs.snapshot()
        with pytest.raises(SlotInUse):
            commit_under(epochs, old, number=9)
        assert epochs.snapshot() == before
        assert epochs.highest_number(0) == 1

    def test_a_copy_of_a_root_waits_for_the_claim_and_the_error_says_which_is_where(
        self, epochs: StateStore
    ) -> None:
        epochs.take([claim_of(1, "a1")], 60)
        with pytest.raises(SlotInUse) as refused:
            epochs.take([claim_of(2, "b2", THERE)], 60)
        assert HERE in str(refused.value)
        assert THERE in str(refused.value)
        assert epochs.snapshot().owners == {0: ROOT_A}
        epochs.take([claim_of(2, "a2")], 60)  # the first one is not disturbed

    def test_a_disk_that_was_attached_elsewhere_goes_on_when_the_claim_has_lapsed(
        self, epochs: StateStore
    ) -> None:
        (old,) = epochs.take([claim_of(1, "a1")], 0.2)
        time.sleep(0.3)
        (new,) = epochs.take([claim_of(2, "b2", THERE)], 60)
        commit_under(epochs, new)
        with pytest.raises(SlotInUse, match="host two"):  # the old holder comes back
            commit_under(epochs, old)
        with pytest.raises(OutdatedCopy) as refused:
            epochs.take([claim_of(2, "a2")], 60)
        assert THERE in str(refused.value)
        assert "root-id" in refused.value.hint

    def test_a_copy_that_missed_an_epoch_never_takes_the_slot_though_it_is_free(
        self, epochs: StateStore
    ) -> None:
        (first,) = epochs.take([claim_of(1, "a1")], 60)  # then the disk is copied
        epochs.give_back([first])
        (second,) = epochs.take([claim_of(2, "a2")], 60)
        epochs.give_back([second])
        assert epochs.snapshot().owners == {}
        for epoch in (1, 2):
            with pytest.raises(OutdatedCopy):
                epochs.take([claim_of(epoch, f"b{epoch}", THERE)], 60)
        epochs.take([claim_of(1, "c1", THERE, root=ROOT_B)], 60)  # as a root of its own, it may

    def test_a_claim_of_a_version_without_epochs_is_taken_over_at_once_by_its_root_alone(
        self, epochs: StateStore
    ) -> None:
        epochs.claim([0], ROOT_A, 60)
        with pytest.raises(SlotInUse, match=ROOT_A):
            epochs.take([claim_of(1, "b1", THERE, root=ROOT_B)], 60)
        epochs.take([claim_of(1, "a1")], 60)
        with pytest.raises(SlotInUse):
            epochs.claim([0], ROOT_B, 60)

    def test_a_take_over_takes_all_slots_or_none(self, epochs: StateStore) -> None:
        epochs.take([claim_of(1, "b1", THERE, slot=1, root=ROOT_B)], 60)
        with pytest.raises(SlotInUse, match="slot 1"):
            epochs.take([claim_of(1, "a1", slot=slot) for slot in range(3)], 60)
        assert epochs.snapshot().owners == {1: ROOT_B}
        epochs.take([claim_of(1, "b1", THERE, slot=0, root=ROOT_B)], 60)

    def test_who_lost_a_slot_does_not_give_back_the_claim_of_who_has_it(
        self, epochs: StateStore
    ) -> None:
        (old,) = epochs.take([claim_of(1, "a1")], 0.2)
        time.sleep(0.3)
        epochs.take([claim_of(2, "b2", THERE)], 60)
        epochs.give_back([old])
        assert epochs.snapshot().owners == {0: ROOT_A}
        with pytest.raises(SlotInUse):
            commit_under(epochs, old)

    def test_a_store_that_lost_everything_learns_the_epoch_from_the_next_commit(
        self, epochs: StateStore
    ) -> None:
        commit_under(epochs, claim_of(5, "a5"))
        with pytest.raises(OutdatedCopy):
            epochs.take([claim_of(5, "b5", THERE)], 60)
        assert list(epochs.take([claim_of(6, "a6")], 60)) == [claim_of(6, "a6")]

    def test_a_slot_that_goes_from_one_root_to_another_is_the_first_ones_no_more(
        self, epochs: StateStore
    ) -> None:
        (old,) = epochs.take([claim_of(8, "a8")], 0.2)
        time.sleep(0.3)
        (new,) = epochs.take([claim_of(1, "b1", THERE, root=ROOT_B)], 60)
        commit_under(epochs, new)
        with pytest.raises(SlotInUse, match="node_id") as refused:
            commit_under(epochs, old)
        assert HERE in str(refused.value)
        assert THERE in str(refused.value)
