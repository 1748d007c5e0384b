"""Workers and their supervisor: they run within the lease, one writer a slot, and none outstays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.intake import supervisor as supervisor_module
from fuploader_dagster.intake import worker_status
from fuploader_dagster.intake.supervisor import Supervisor, supervisor_for
from fuploader_dagster.intake.worker import Job
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.settings.loading import dump_intake
from fuploader_dagster.settings.pipeline import Intake
from tests import drains
from tests.drains import (
    assert_exactly_once,
    backlog,
    draining,
    embedded,
    files,
    first_worker,
    on_servers,
    one_worker,
    pids,
    publish,
    publishing,
    sealed_files,
    stored,
    wait_for,
    wait_until_handled,
    wait_until_stored,
)
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

ROOT = Path(__file__).parents[2]


class Supervising:
    """A process of its own that supervises, and prints its problems after each renewal."""

    def __init__(self, settings: Intake) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.drains"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(dump_intake(settings) + b"\n")
        self.process.stdin.flush()

    def problems(self) -> list[str]:
        """The next ones that it prints."""
        assert self.process.stdout is not None
        found: list[str] = json.loads(self.process.stdout.readline())
        return found

    def leave(self) -> None:
        self.process.communicate(timeout=60)


@contextmanager
def supervising(settings: Intake) -> Iterator[Supervising]:
    one = Supervising(settings)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def is_alive(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def gone_within(seconds: float, found: set[int]) -> bool:
    """Whether the processes ended within that time."""
    until = time.monotonic() + seconds
    while any(map(is_alive, found)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def assert_nothing_in_hand(settings: Intake, contents: dict[str, bytes]) -> None:
    """What was committed was acknowledged, and what was not is in the queue: none is in between."""
    counts: list[int] = []

    def settled() -> bool:  # the broker takes a moment to queue again what was given back
        counts.append(backlog(settings))
        return counts[-1] > 0 and counts[-1:] * 10 == counts[-10:]

    wait_for(settled, settings, "what was given back")
    assert len(stored(settings.layout)) + counts[-1] == len(contents)


def test_without_renewals_workers_finish_their_batch_and_leave_soon_after_the_lease(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(
        tmp_path,
        **on_servers(rabbitmq, redis_server),
        process_count=2,
        lease_seconds=6,
        commit_messages=1,
        parser=drains.slowly,  # 40 s of work for both: much is left when the lease ends
    )
    contents = files(20_000)
    publish(settings, contents)
    supervisor = Supervisor(settings)

    def both_drain() -> bool:
        supervisor.renew()
        return len(pids(settings)) == 2 and len(stored(settings.layout)) > 100

    wait_for(both_drain, settings, "the drain")
    supervisor.renew()
    began = time.monotonic()
    workers = pids(settings)
    assert not gone_within(5.5 - (time.monotonic() - began), workers)
    assert gone_within(60, workers)
    assert_nothing_in_hand(settings, contents)
    supervisor.stop()


def test_when_the_supervising_process_is_killed_its_workers_leave_in_good_order(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(
        tmp_path,
        **on_servers(rabbitmq, redis_server),
        process_count=2,
        commit_messages=10,
        lease_seconds=60,
    )
    with publishing(settings) as contents, supervising(settings) as one:
        wait_for(lambda: len(pids(settings)) == 2, settings, "the workers")
        wait_for(lambda: len(stored(settings.layout)) > 100, settings, "the drain")
        workers = pids(settings)
        one.process.kill()
        assert gone_within(25, workers)  # a lease is 60 s here, and a hung worker ends after 30
        wait_for(lambda: backlog(settings) > 0, settings, "messages that nobody takes")
    assert_nothing_in_hand(settings, contents)


def test_sigterm_sends_a_worker_away_in_good_order_and_sigint_does_not(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    contents = files(500)
    with draining(settings) as supervisor:
        first = one_worker(settings).pid
        os.kill(first, signal.SIGINT)
        publish(settings, dict(list(contents.items())[:250]))
        wait_until_handled(settings, 250)
        assert one_worker(settings).pid == first
        os.kill(first, signal.SIGTERM)
        assert gone_within(60, {first})
        publish(settings, dict(list(contents.items())[250:]))
        wait_until_stored(settings, contents)
        assert one_worker(settings).pid != first
        assert supervisor.problems() == []
    assert_exactly_once(settings, contents)


def test_of_two_supervisors_one_drains_and_the_other_says_who_does_and_takes_over(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(tmp_path, **on_servers(rabbitmq, redis_server), seal_messages=400)
    contents = files(3_000)
    with supervising(settings) as first:
        holder = one_worker(settings).pid
        publish(settings, dict(list(contents.items())[:1_500]))
        with supervising(settings) as second:
            wait_for(lambda: bool(second.problems()), settings, "the second's problem")
            (problem,) = second.problems()
            assert f"slot-0.lock is held by process {holder}" in problem
            wait_until_handled(settings, 1_500)
            (standby,) = (s for s in read_statuses(settings.layout) if s.pid != holder)
            assert (standby.doing, standby.messages) == ("trouble", 0)
            publish(settings, dict(list(contents.items())[1_500:]))
            first.leave()
            wait_for(lambda: second.problems() == [], settings, "the take-over")
            wait_until_stored(settings, contents)
            second.leave()
    assert_exactly_once(settings, contents)


def test_after_a_reload_the_next_supervisor_waits_for_no_lease_to_end(tmp_path: Path) -> None:
    settings = embedded(tmp_path, lease_seconds=60)
    contents = files(100)
    with supervising(settings) as old:
        one_worker(settings)
        with supervising(settings) as new:
            wait_for(lambda: bool(new.problems()), settings, "the new one's wait for the slot")
            old.process.kill()
            publish(settings, contents)
            wait_until_stored(settings, contents, 55)
            new.leave()
    assert_exactly_once(settings, contents)


def test_a_worker_that_hangs_is_killed_after_it_was_let_go_and_its_message_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "LEAVING_SECONDS", 2)
    hanging = embedded(tmp_path, parser=drains.hang)
    contents = files(10)
    publish(hanging, contents)
    stuck = Supervisor(hanging)
    worker = first_worker(stuck, hanging)
    wait_for(lambda: backlog(hanging) < len(contents), hanging, "a message in hand")
    stuck.let_go()
    assert not gone_within(0.5, {worker.pid})
    assert gone_within(25, {worker.pid})  # after 30 it would have ended itself
    mended = embedded(tmp_path)
    with draining(mended):
        wait_until_stored(mended, contents)
    assert_exactly_once(mended, contents)


def test_a_worker_that_hangs_ends_itself_when_nobody_supervises_it_any_more(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path, parser=drains.hang)
    publish(settings, files(1))
    code = "from fuploader_dagster.intake import worker as w; w.LEAVING_SECONDS = 1; w.main()"
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT)
    assert worker.stdin is not None
    job = Job(0, 60, [str(ROOT)], 2, msgspec.Raw(dump_intake(settings)))
    worker.stdin.write(msgspec.json.encode(job) + b"\n")
    worker.stdin.flush()
    wait_for(lambda: pids(settings) == {worker.pid}, settings, "the worker")
    wait_for(lambda: backlog(settings) == 0, settings, "the batch in hand")
    worker.stdin.close()
    assert worker.wait(60) == 2


def test_a_tick_does_not_wait_for_a_worker_that_reads_nothing(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    with draining(settings) as supervisor:
        worker = one_worker(settings)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _ in range(10_000):  # more than a pipe holds
                supervisor.renew()
            assert time.monotonic() - began < 60
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        publish(settings, files(10))
        wait_until_handled(settings, 10)
        assert one_worker(settings).pid == worker.pid


def test_a_worker_that_says_nothing_for_long_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = embedded(tmp_path)
    with draining(settings) as supervisor:
        worker = one_worker(settings)
        wait_for(lambda: one_worker(settings).doing == "draining", settings, "the worker")
        assert supervisor.problems() == []
        monkeypatch.setattr(worker_status, "SILENT_SECONDS", 1.5)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: bool(supervisor.problems()), settings, "the problem")
            (problem,) = supervisor.problems()
            assert f"(process {worker.pid}) has not written its status for" in problem
        finally:
            os.kill(worker.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("def parse(body): return body]", "SyntaxError: unmatched ']'"),
        ("import no_such_library", "No module named 'no_such_library'"),
        ("parse = 5", "nor the package.module:name of one"),
    ],
)
def test_a_worker_that_dies_at_its_start_says_why_and_comes_back_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, sentence: str
) -> None:
    module = f"own_parser_{abs(hash(broken))}"
    path = tmp_path / f"{module}.py"
    path.write_text("def parse(body): return body\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = embedded(tmp_path, parser=f"{module}:parse", message_format="raw")
    path.write_text(broken + "\n")
    with draining(settings) as supervisor:
        wait_for(lambda: bool(supervisor.problems()), settings, "the problem")
        (problem,) = supervisor.problems()
        assert problem.startswith("worker 0 ended ")
        assert sentence in problem
        path.write_text("def parse(body): return {'file_name': 'a', 'body': body.decode()}\n")
        wait_for(lambda: supervisor.problems() == [], settings, "the mended worker")


def test_a_killed_worker_is_replaced_and_reported_only_until_it_drains_again(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    with draining(settings) as supervisor:
        first = one_worker(settings).pid
        os.kill(first, signal.SIGKILL)
        said: list[str] = []
        wait_for(lambda: bool(said.extend(supervisor.problems()) or said), settings, "the problem")
        assert "SIGKILL" in said[0]
        wait_for(lambda: supervisor.problems() == [], settings, "the next worker")
        assert one_worker(settings).pid != first


def test_changed_settings_bring_new_workers_without_a_wait_for_the_old_ones(
    tmp_path: Path,
) -> None:
    old = embedded(tmp_path, seal_messages=1_000)
    new = embedded(tmp_path, seal_messages=50, commit_messages=50)
    contents = files(100)
    supervisor = supervisor_for(old)
    assert supervisor_for(embedded(tmp_path, seal_messages=1_000)) is supervisor
    before = first_worker(supervisor, old).pid
    os.kill(before, signal.SIGSTOP)  # it cannot leave, so whoever waits for it has to kill it
    supervisor = supervisor_for(new)
    supervisor.renew()
    assert is_alive(before)
    os.kill(before, signal.SIGCONT)
    try:
        assert gone_within(60, {before})
        publish(new, contents)
        wait_until_stored(new, contents)
    finally:
        supervisor.stop()
    seal_on_request(new)
    assert sealed_files(new.layout) == {name: [body] for name, body in contents.items()}
