"""The digest of pieces, whoever computes it."""

from __future__ import annotations

import hashlib
import os
from multiprocessing import get_context

from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.fetching.running_digest import MOST_BEHIND, WORTH_A_THREAD, RunningDigest

SIZES = st.sampled_from(
    [0, 1, 1000, WORTH_A_THREAD - 1, WORTH_A_THREAD, MOST_BEHIND, 2 * MOST_BEHIND + 1]
)


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=12))
def test_it_is_that_of_all_pieces_in_their_order_whenever_it_is_asked_for(
    pieces: list[tuple[int, bool]],
) -> None:
    digest, whole = RunningDigest(), hashlib.sha256()
    for number, (size, asked) in enumerate(pieces):
        piece = bytes([number]) * size
        digest.update(piece)
        whole.update(piece)
        if asked:
            assert digest.digest() == whole.digest()
    assert digest.hexdigest() == whole.hexdigest()


def in_a_fork() -> None:
    digest = RunningDigest()
    digest.update(bytes(MOST_BEHIND))
    os._exit(0 if digest.digest() == hashlib.sha256(bytes(MOST_BEHIND)).digest() else 1)


def test_a_fork_of_a_process_that_has_the_thread_gets_its_own() -> None:
    before = RunningDigest()
    before.update(bytes(MOST_BEHIND))
    before.digest()
    child = get_context("fork").Process(target=in_a_fork)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    child.close()
