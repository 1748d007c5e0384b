"""Dead letters as jobs: send them back, write them into files, discard them.

None of them does anything before a person has chosen letters in the launchpad: ids, as
`fuploader dead-letters list` shows them, or `everything`.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of `context` and
# `config`.

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import dagster as dg
from pydantic import Field

from fuploader_dagster.assets.overrides import queue_and_state, with_resources
from fuploader_dagster.assets.partitions import PRIORITY_TAGS, Names
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery.send_letters import (
    Sent,
    discard,
    export,
    send_back,
    waiting_letters,
)
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline

LISTED = 20


class Letters(dg.Config):
    """Which letters, for all three jobs."""

    ids: list[str] = Field(
        default=[], description="Ids of letters, as `fuploader dead-letters list` shows them."
    )
    everything: bool = Field(default=False, description="All that wait, in place of ids.")


class RequeueConfig(Letters):
    """What a person can say in the launchpad."""

    to: Literal["queue", "stage"] = Field(
        default="queue",
        description="queue: as messages, which are stored as new files. stage: do again what "
        "failed: process the files, or store their rows in the sink.",
    )


class ExportConfig(Letters):
    """What a person can say in the launchpad."""

    folder: str = Field(
        default="", description="Folder on this node to write each body into, as a file."
    )


def build_requeue_job(pipeline: Pipeline) -> dg.JobDefinition:
    """A job that sends dead letters back."""
    name = Names.of(pipeline).requeue_job

    @dg.op(name=f"{name}_op", required_resource_keys=queue_and_state(pipeline))
    def send(context: dg.OpExecutionContext, config: RequeueConfig) -> None:
        with _refusals():
            ids = _ids(config)
            used = with_resources(pipeline, context)
            done = send_back(used, ids, stage=config.to == "stage")
            _hand_over(used, done)
        context.log.info(
            f"sent {counted(done.messages, 'message')} to {used.source.describe()}; "
            f"{counted(len(done.slots), 'slot is', 'slots are')} processed again; stored "
            f"{counted(done.rows, 'row')}; "
            f"{counted(len(done.settled), 'letter is', 'letters are')} settled already"
        )
        context.add_output_metadata(
            {"messages": done.messages, "slots": len(done.slots), "rows": done.rows}
        )
        if done.refused:
            listed = [f"{key}: {why}" for key, why in list(done.refused.items())[:LISTED]]
            raise dg.Failure(
                f"{counted(len(done.refused), 'letter stays', 'letters stay')} here: "
                f"{'; '.join(listed)}",
                allow_retries=False,
            )

    return _job(
        name,
        send,
        dg.RunConfig(ops={f"{name}_op": RequeueConfig()}),
        "Sends dead letters back, to the queue or to the stage that failed. Choose ids, or "
        "everything.",
    )


def build_export_letters_job(pipeline: Pipeline) -> dg.JobDefinition:
    """A job that writes the bodies of dead letters into files."""
    name = Names.of(pipeline).export_letters_job

    @dg.op(name=f"{name}_op")
    def write(context: dg.OpExecutionContext, config: ExportConfig) -> None:
        with _refusals():
            ids = _ids(config)
            if not config.folder:
                raise ConfigError("no folder was given", hint="say `folder` in the config")
            letters = waiting_letters(pipeline.layout, ids)
            written, refused = export(letters, Path(config.folder))
        context.log.info(f"wrote {counted(written, 'body', 'bodies')} into {config.folder}")
        context.add_output_metadata(
            {"written": written, "folder": dg.MetadataValue.path(config.folder)}
        )
        if refused:
            raise dg.Failure(f"not written: {'; '.join(refused[:LISTED])}", allow_retries=False)

    return _job(
        name,
        write,
        dg.RunConfig(ops={f"{name}_op": ExportConfig()}),
        "Writes the bodies of dead letters into files in a folder of this node. Existing files are "
        "not touched.",
    )


def build_discard_job(pipeline: Pipeline) -> dg.JobDefinition:
    """A job that has dead letters wait no more."""
    name = Names.of(pipeline).discard_job

    @dg.op(name=f"{name}_op")
    def drop(context: dg.OpExecutionContext, config: Letters) -> None:
        with _refusals():
            count = discard(pipeline.layout, _ids(config))
        context.log.info(
            f"{counted(count, 'dead letter is', 'dead letters are')} discarded. Nothing "
            "was removed; "
            f"`fuploader dead-letters list --all` shows them"
        )
        context.add_output_metadata({"discarded": count})

    return _job(
        name,
        drop,
        dg.RunConfig(ops={f"{name}_op": Letters()}),
        "Has dead letters wait no more, because nobody needs them. Removes nothing from the disk.",
    )


@contextmanager
def _refusals() -> Iterator[None]:
    """What our errors say of a wrong config, as a failure that Dagster does not try again."""
    try:
        yield
    except ConfigError as error:
        raise dg.Failure(f"nothing was done: {error}", allow_retries=False) from None


def _ids(config: Letters) -> list[str]:
    """The letters that were chosen; none for all. Raises `ConfigError` without a choice."""
    if bool(config.ids) == config.everything:
        raise ConfigError(
            "give either the ids of dead letters or everything: true",
            hint="`fuploader dead-letters list` shows the ids",
        )
    return config.ids


def _hand_over(pipeline: Pipeline, done: Sent) -> None:
    """List new slots where the drain sensor looks for them."""
    if done.slots:
        settings = pipeline.state
        with settings.opened(pipeline=pipeline.name, node=pipeline.node) as state:
            state.add_sealed([slot.seal.partition for slot in done.slots])


def _job(
    name: str, op: Callable[[], object], config: dg.RunConfig, description: str
) -> dg.JobDefinition:
    @dg.job(
        name=name,
        executor_def=dg.in_process_executor,
        tags=PRIORITY_TAGS,
        description=description,
        config=config,
    )
    def job() -> None:
        op()

    return job
