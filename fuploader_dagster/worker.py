"""A drain worker's process: reads its job from stdin, drains until its lease is over, leaves.

Started by `supervisor`. Ctrl-C goes to the whole process group, so SIGINT is ignored here: the end
of the lease is what ends a worker, in good order. SIGTERM ends the lease at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

import msgspec

from fuploader_dagster.lease import Lease

LOG_FORMAT = "%(asctime)s %(levelname)s worker %(process)d %(name)s: %(message)s"


class Job(msgspec.Struct, frozen=True):
    """What a supervisor tells a worker at its start."""

    worker: int
    lease_seconds: float
    sys_path: list[str]
    """Where the supervisor imports from: strategies must be found the same way."""
    intake: msgspec.Raw
    """`loading.dump_intake`."""


def main() -> int:
    """The process. Exit code 0 when the lease is over, 1 when something unforeseen happened."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lease = Lease(sys.stdin.fileno())
    signal.signal(signal.SIGTERM, lambda *_: lease.end("the worker was told to leave"))
    line = lease.read_job()
    if not line:
        return 0
    job = msgspec.json.decode(line, type=Job)
    lease.renew(job.lease_seconds)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # its errors reach the log as ours
    sys.path[:] = [*job.sys_path, *(path for path in sys.path if path not in job.sys_path)]

    # Only now: a user's parser may come from a folder that just became importable.
    from fuploader_dagster.drain import Drain  # noqa: PLC0415
    from fuploader_dagster.loading import load_intake  # noqa: PLC0415

    intake = load_intake(bytes(job.intake))
    drain = Drain(
        intake,
        job.worker,
        source=intake.source.source(prefetch=intake.prefetch_count),
        state=intake.state.store(pipeline=intake.name, node=intake.node),
        lease=lease,
    )
    try:
        drain.run()
    except Exception:
        logging.getLogger(__name__).exception("worker %d ends on an error", job.worker)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # a user's parser may have left threads that would keep the process
