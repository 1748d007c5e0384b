"""What an answer is written with: pieces are sent in order, together, and all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from fuploader_dagster.front.connection import MOST_GATHERED_BYTES, Gathered
from tests.servers.ports import LOOPBACK

PIECES = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 100, MOST_GATHERED_BYTES, 3 * MOST_GATHERED_BYTES])
        | st.integers(0, 50),
        st.booleans(),
    ),
    max_size=12,
)
"""Sizes of pieces, and whether the event loop comes round after each."""


class Counting:
    """Around a transport: what was handed to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.written: list[bytes] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.transport.write(data)


async def exchanged(pieces: Sequence[tuple[bytes, bool]]) -> tuple[bytes, list[bytes]]:
    """What a client gets of these pieces before the end, and how they were handed over."""
    counting: list[Counting] = []
    done = asyncio.Event()

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            counting.append(Counting(transport))  # type: ignore[arg-type]
            gathered = Gathered(counting[0])
            task = asyncio.ensure_future(self.answer(gathered))
            task.add_done_callback(lambda _: done.set())

        async def answer(self, transport: Gathered) -> None:
            for piece, comes_round in pieces:
                transport.write(piece)
                if comes_round:
                    await asyncio.sleep(0)
            transport.close()

    server = await asyncio.get_running_loop().create_server(Answering, LOOPBACK, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        got = await asyncio.wait_for(reader.read(), 60)
        await asyncio.wait_for(done.wait(), 60)
        writer.close()
        await writer.wait_closed()
    return got, counting[0].written


@settings(deadline=None, max_examples=60)
@given(PIECES)
def test_all_pieces_arrive_in_order(sizes: list[tuple[int, bool]]) -> None:
    pieces = [(b"%c" % (65 + at) * size, soon) for at, (size, soon) in enumerate(sizes)]
    got, written = asyncio.run(exchanged(pieces))
    assert got == b"".join(piece for piece, _ in pieces) == b"".join(written)
    assert max(map(len, written), default=0) <= 4 * MOST_GATHERED_BYTES


def test_what_is_written_in_one_turn_is_sent_together() -> None:
    pieces = [(b"head", False), (b"body", True), (b"next head", False), (b"next body", True)]
    _, written = asyncio.run(exchanged(pieces))
    assert written == [b"headbody", b"next headnext body"]
