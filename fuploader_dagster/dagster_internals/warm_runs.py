"""Uses private names of Dagster: a run launcher whose runs are forks of a warmed-up process.

Dagster's own launcher has the code server start a Python for each run, which imports Dagster,
SQLAlchemy and the SDK of the store: two to three seconds of CPU before the first slot is packed
(docs/decisions/0009-runs-are-forks.md). Here the process that launches runs, Dagster's daemon,
keeps a child that has imported all of that once, and each run is a fork of it.

What must always hold:

- Only runs of this package's pipelines are started like this, and only if the code server is one
  that `dagster dev` started beside this process, with the same Python, folder and environment.
  Dagster's default launcher starts every other run.
- A run is a process of its own, which loads settings, strategies and definitions again: what
  somebody corrected takes effect with the next run. Only installed packages are kept.
- A run whose process dies is reported as failed; `Terminate` in the UI interrupts a run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.process import BaseProcess

import dagster as dg
from dagster._cli.api import _execute_run_command_body
from dagster._core.instance import InstanceRef
from dagster._core.launcher.base import LaunchRunContext
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._utils import get_run_crash_explanation
from dagster._utils.interrupts import capture_interrupts

from fuploader_dagster.assets.partitions import PIPELINE_TAG
from fuploader_dagster.assets.run_machine import machine_of, machine_tag
from fuploader_dagster.disk.place import is_this_machine, machine
from fuploader_dagster.sensors.dead_runs import living_process_of

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["fuploader_dagster.dagster_internals.warm_imports"])


class WarmRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher; under `dagster dev`, runs of our pipelines are forks."""

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        if not _is_ours_and_here(run):
            super().launch_run(context)
            return
        process = _forks.Process(
            target=_execute, args=(run.run_id, self._instance.get_ref()), name=f"run {run.run_id}"
        )
        # Another machine's launcher must not look for this process's number among its own.
        self._instance.add_run_tags(run.run_id, machine_tag(run.run_id))
        process.start()
        threading.Thread(target=self._watch, args=(process, run.run_id), daemon=True).start()

    def _watch(self, process: BaseProcess, run_id: str) -> None:
        process.join()
        run = self._instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            told = get_run_crash_explanation(f"The process of run {run_id}", process.exitcode or 0)
            self._instance.report_engine_event(told, run, cls=type(self))
            self._instance.report_run_failed(run)

    def terminate(self, run_id: str) -> bool:
        """Interrupt a run, from any process; False if it has ended. The run reports its own end."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or GRPC_INFO_TAG in run.tags:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        if (place := machine_of(run)) is not None and not is_this_machine(place):
            self._instance.report_engine_event(
                f"This run works on {place}. Terminate it there: its process number means nothing "
                f"on {machine()}.",
                run,
                cls=type(self),
            )
            return False
        self._instance.report_run_canceling(run)
        pid = living_process_of(run, self._instance)
        if pid is None:
            self._instance.report_run_canceled(run)
            return False
        os.kill(pid, signal.SIGINT)
        return True


def _is_ours_and_here(run: dg.DagsterRun) -> bool:
    job, code = run.remote_job_origin, run.job_code_origin
    if PIPELINE_TAG not in run.tags or job is None or code is None:
        return False
    location = job.repository_origin.code_location_origin
    return (
        isinstance(location, GrpcServerCodeLocationOrigin)
        and location.socket is not None  # of `dagster dev`; others listen at ports
        and code.repository_origin.executable_path == sys.executable
    )


def _execute(run_id: str, instance_ref: InstanceRef) -> None:
    """What `dagster api execute_run` does."""
    with capture_interrupts(), dg.DagsterInstance.from_ref(instance_ref) as instance:
        _execute_run_command_body(
            run_id, instance, write_stream_fn=lambda _: None, set_exit_code_on_failure=False
        )
