"""The lease: runs while it is renewed, ends with the pipe, the time or a signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from fuploader_dagster.intake.lease import Lease, renewal


@dataclass
class Pipe:
    """Both ends, with a clock that the test turns."""

    descriptors: tuple[int, int] = field(default_factory=os.pipe)
    now: float = 100.0
    closed: bool = False

    def lease(self) -> Lease:
        return Lease(self.descriptors[0], clock=lambda: self.now)

    def send(self, content: bytes) -> None:
        os.write(self.descriptors[1], content)

    def close(self) -> None:
        if not self.closed:
            os.close(self.descriptors[1])
            self.closed = True


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()
    os.close(made.descriptors[0])


def test_a_lease_that_nobody_renewed_is_over(pipe: Pipe) -> None:
    assert pipe.lease().over() == "the supervisor did not renew the lease"


def test_each_renewal_counts_from_when_it_is_read(pipe: Pipe) -> None:
    lease = pipe.lease()
    lease.renew(5)
    for _ in range(3):
        pipe.now += 4.9
        assert lease.over() == ""
        pipe.send(renewal(5))
        assert lease.over() == ""
    pipe.now += 5
    assert lease.over() == "the supervisor did not renew the lease"


def test_a_lease_that_is_over_stays_over(pipe: Pipe) -> None:
    lease = pipe.lease()
    lease.renew(5)
    pipe.now += 6
    assert lease.over()
    pipe.send(renewal(5))
    assert lease.over()


def test_the_end_of_the_pipe_ends_the_lease_at_once(pipe: Pipe) -> None:
    lease = pipe.lease()
    pipe.send(renewal(1000))
    assert lease.over() == ""
    pipe.send(renewal(1000))
    pipe.close()
    assert lease.over() == "the supervisor closed the pipe or died"


def test_a_renewal_may_arrive_in_pieces_and_several_at_once(pipe: Pipe) -> None:
    lease = pipe.lease()
    lease.renew(1)
    line = renewal(7)
    for byte in range(len(line) - 1):
        pipe.send(line[byte : byte + 1])
        assert lease.over() == ""
    pipe.now += 0.9
    pipe.send(line[-1:])
    assert lease.over() == ""
    pipe.now += 6.9
    assert lease.over() == ""
    pipe.send(renewal(1) + renewal(9) + b"ren")
    assert lease.over() == ""
    pipe.now += 8.9
    assert lease.over() == ""


def test_lines_that_are_no_renewal_change_nothing(pipe: Pipe) -> None:
    lease = pipe.lease()
    lease.renew(1)
    pipe.send(b"\nhello\nrenewal 9\n")
    assert lease.over() == ""
    pipe.now += 1
    assert lease.over()


def test_the_job_is_the_first_line_and_what_follows_is_kept(pipe: Pipe) -> None:
    lease = pipe.lease()
    pipe.send(b'{"job": 1}\n' + renewal(5))
    assert lease.read_job() == b'{"job": 1}'
    assert lease.over() == ""
    pipe.now += 5
    assert lease.over()


def test_a_job_larger_than_the_pipe_is_read_whole(pipe: Pipe) -> None:
    job = b"x" * 300_000
    writer = threading.Thread(target=pipe.send, args=(job + b"\n",))
    writer.start()
    assert pipe.lease().read_job() == job
    writer.join()


@pytest.mark.parametrize("sent", [b"", b'{"job": 1'])
def test_a_job_that_was_cut_off_is_no_job(pipe: Pipe, sent: bytes) -> None:
    lease = pipe.lease()
    pipe.send(sent)
    pipe.close()
    assert lease.read_job() == b""
    assert lease.over() == "the supervisor closed the pipe or died"


def test_the_first_reason_for_the_end_is_kept(pipe: Pipe) -> None:
    lease = pipe.lease()
    lease.renew(5)
    lease.end("told to leave")
    pipe.close()
    assert lease.over() == "told to leave"


def test_a_pause_ends_with_the_lease_and_not_before_its_time() -> None:
    reading, writing = os.pipe()
    try:
        lease = Lease(reading)
        lease.renew(300)
        started = time.monotonic()
        assert lease.wait(0.05) == ""
        assert 0.05 <= time.monotonic() - started < 60
        os.close(writing)
        started = time.monotonic()
        assert lease.wait(120) == "the supervisor closed the pipe or died"
        assert time.monotonic() - started < 60
    finally:
        os.close(reading)


def test_a_signal_ends_a_pause_soon() -> None:
    reading, writing = os.pipe()
    lease = Lease(reading)
    lease.renew(300)
    before = signal.signal(signal.SIGALRM, lambda *_: lease.end("told to leave"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        started = time.monotonic()
        assert lease.wait(120) == "told to leave"
        assert time.monotonic() - started < 60
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(reading)
        os.close(writing)
