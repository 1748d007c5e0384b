"""Pausing and resuming, as jobs that a person launches in the UI."""

# No `from __future__ import annotations` here: Dagster reads the annotations of `context` and
# `config`.

from typing import Literal

import dagster as dg
from pydantic import Field

from fuploader_dagster.assets.overrides import queue_and_state, with_resources
from fuploader_dagster.assets.partitions import PRIORITY_TAGS, Names
from fuploader_dagster.assets.run_machine import note_machine
from fuploader_dagster.control.wishes import PARTS, wish
from fuploader_dagster.settings.pipeline import Pipeline


class PauseConfig(dg.Config):
    """What a person can say in the launchpad."""

    what: Literal["both", "intake", "shipping"] = Field(
        default="both",
        description="intake: the drain. shipping: processing, packing, uploads and sinks.",
    )
    reason: str = Field(default="", description="Why, for everybody who meets the pause.")
    by: str = Field(default="", description="Your name. Default: the id of the run.")


def build_pause_job(pipeline: Pipeline) -> dg.JobDefinition:
    """A job that pauses the pipeline on all its nodes."""
    return _job(
        pipeline,
        Names.of(pipeline).pause_job,
        paused=True,
        description="Pauses the pipeline on all its nodes until somebody resumes it.",
    )


def build_resume_job(pipeline: Pipeline) -> dg.JobDefinition:
    """A job that ends a pause, whoever asked for it."""
    return _job(
        pipeline,
        Names.of(pipeline).resume_job,
        paused=False,
        description="Ends a pause of the pipeline, whoever asked for it, on all its nodes.",
    )


def _job(pipeline: Pipeline, name: str, *, paused: bool, description: str) -> dg.JobDefinition:
    op_name = f"{name}_op"

    @dg.op(name=op_name, required_resource_keys=queue_and_state(pipeline))
    def say(context: dg.OpExecutionContext, config: PauseConfig) -> None:
        note_machine(context)
        parts = PARTS if config.what == "both" else (config.what,)
        by = config.by or f"run {context.run_id[:8]}"
        done = wish(
            with_resources(pipeline, context), parts, paused=paused, by=by, reason=config.reason
        )
        before = str(done.before) or "nothing was paused"
        context.log.info(f"before: {before}; now: {str(done.now) or 'nothing is paused'}")
        if done.trouble:
            context.log.warning(done.trouble)

    @dg.job(
        name=name,
        executor_def=dg.in_process_executor,
        tags=PRIORITY_TAGS,
        description=description,
        config=dg.RunConfig(ops={op_name: PauseConfig()}),
    )
    def said() -> None:
        say()

    return said
