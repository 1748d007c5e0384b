"""A drain worker's process: reads its job from stdin, drains until its lease is over, leaves.

The pipe that comes as stdin is moved away at once (`_take_away_stdin`): programs that a user's
parser runs must not read it.

Started by `supervisor`. Ctrl-C goes to the whole process group, so SIGINT is ignored here: the end
of the lease ends a worker, in good order. SIGTERM ends the lease at once.

A worker that dies of an error writes the cause, in a sentence, into a pipe that its supervisor
reads. One that hangs (a user's parser, a disk that does not answer) ends itself some time after its
supervisor is gone: nobody else would end it, and it holds its slots until then. With nothing in
hand, while it connects to a broker that hangs or disconnects from it, it does so at once.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import resource
import select
import signal
import sys
import threading
import time

import msgspec
from pydantic import ValidationError

from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.intake.lease import Lease
from fuploader_dagster.settings.logs import log_as

log = logging.getLogger(__name__)

LEAVING_SECONDS = 30.0
"""How long a worker may take to leave before it is killed. Nothing is lost then: the queue delivers
again what it had not acknowledged."""
GOODBYE_SECONDS = 1.0
"""How long connecting or disconnecting may still take once the lease is over."""
MAX_LAST_WORDS = 1000
"""Less than fits into a pipe without a reader."""
EXIT_ERROR, EXIT_HUNG = 1, 2
FIRST_OWN_DESCRIPTOR = 10
"""Above the descriptors that shells and scripts use by number."""


class Job(msgspec.Struct, frozen=True):
    """What a supervisor sends a worker at its start."""

    worker: int
    lease_seconds: float
    sys_path: list[str]
    """The supervisor's `sys.path`: strategies must be found the same way."""
    last_words: int
    """The descriptor to which the worker writes what it died of."""
    intake: msgspec.Raw
    """`loading.dump_intake`."""
    despite_pause: bool = False
    """Drain also while somebody has paused the intake."""


def main() -> int:
    """Run the process. Returns exit code 0 when the lease is over, 1 after an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lease = Lease(_take_away_stdin())
    signal.signal(signal.SIGTERM, lambda *_: lease.end("it received SIGTERM"))
    line = lease.read_job()
    if not line:
        return 0
    job = msgspec.json.decode(line, type=Job)
    lease.renew(job.lease_seconds)
    if job.last_words > sys.stderr.fileno():
        os.set_inheritable(job.last_words, False)
    log_as(f"worker {job.worker}")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # its errors reach the log as ours
    threading.Thread(target=_leave_at_last, args=[lease], daemon=True).start()
    try:
        _drain(job, lease)
    except Exception as error:
        sentence = in_a_sentence(error)
        foreseen = isinstance(error, (FuploaderError, ValidationError))
        log.error("worker %d ends after an error: %s", job.worker, sentence, exc_info=not foreseen)
        os.write(job.last_words, sentence.encode("utf-8", "replace")[:MAX_LAST_WORDS])
        return EXIT_ERROR
    return 0


def _take_away_stdin() -> int:
    """Move the pipe that comes as stdin to another descriptor; stdin is /dev/null from now on.

    Programs that a user's parser runs inherit stdin, and many read it (ffmpeg, ssh, cat): they
    would swallow the renewals of the lease, or wait for ever for the end of the pipe.
    """
    pipe = fcntl.fcntl(sys.stdin.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_DESCRIPTOR)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno(), inheritable=True)
    os.close(nothing)
    return pipe


def _drain(job: Job, lease: Lease) -> None:
    sys.path[:] = [*job.sys_path, *(path for path in sys.path if path not in job.sys_path)]

    # Imported only now: a user's parser may be in a folder that has just become importable.
    from fuploader_dagster.intake.drain import Drain  # noqa: PLC0415
    from fuploader_dagster.settings.loading import load_intake  # noqa: PLC0415

    intake = load_intake(bytes(job.intake))
    if intake.worker_memory_bytes is not None:
        limit = intake.worker_memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    gc.freeze()  # imported modules stay; messages make no cycles that have to be found soon
    gc.set_threshold(50_000, 20, 100)
    source = intake.source.source(prefetch=intake.prefetch_count)
    source.named(f"{intake.name}-{intake.node}-{job.worker}")
    drain = Drain(
        intake,
        job.worker,
        source=source,
        state=intake.state.store(pipeline=intake.name, node=intake.node),
        lease=lease,
        despite_pause=job.despite_pause,
    )
    drain.run()


def _leave_at_last(lease: Lease) -> None:
    """End the process if it is still running long after its supervisor closed the pipe."""
    closed = select.poll()
    closed.register(lease.descriptor, 0)  # polls for nothing but the closing of the other end
    closed.poll()
    now = in_hand_at = time.monotonic()
    until = now + LEAVING_SECONDS
    while now < until and now - in_hand_at < GOODBYE_SECONDS:
        time.sleep(0.1)
        now = time.monotonic()
        if lease.in_hand:
            in_hand_at = now
    if lease.in_hand:
        log.error("the worker hung for %.0f s instead of leaving, and ends now", LEAVING_SECONDS)
    os._exit(EXIT_HUNG if lease.in_hand else 0)


def in_a_sentence(error: Exception) -> str:
    """The error in one sentence, without the values of settings (they may be secrets)."""
    if isinstance(error, ValidationError):
        details = error.errors(include_input=False, include_url=False, include_context=False)
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in details)
    return str(error) if isinstance(error, FuploaderError) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # threads that a user's parser left would keep the process running
