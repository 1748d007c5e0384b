"""The command line: `fuploader --help`.

Every command reads the same configuration as the code location (`$FUPLOADER_CONFIG`, else
`fuploader.yaml`). Exit codes:

    0  done
    1  something unforeseen: a bug, with its traceback
    2  wrong usage or wrong configuration
    3  something does not answer: try again later
    4  something refuses us, or slots failed: a person has to act
    5  damaged data
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fuploader_dagster.cli import archives, catalog, dead_letters, doctor, init, migrate, replay
from fuploader_dagster.cli.console import (
    ConfigOption,
    JsonOption,
    PipelineOption,
    complain,
    counting,
    one_pipeline,
    say,
    show_table,
)
from fuploader_dagster.cli.publishing import publish_lines
from fuploader_dagster.cli.samples import sample_messages
from fuploader_dagster.delivery import recovery
from fuploader_dagster.delivery.failures import all_failures
from fuploader_dagster.delivery.mend import all_mended
from fuploader_dagster.delivery.ship import Failed, ship
from fuploader_dagster.disk.names_in_utf8 import require_utf8_names
from fuploader_dagster.errors import (
    ConfigError,
    DamagedData,
    FuploaderError,
    TemporaryError,
)
from fuploader_dagster.intake.disk_space import DiskSpace, Unshipped, space_of
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import log_to_stderr, print_uncaught
from fuploader_dagster.slots.sealing import sealed_partitions
from fuploader_dagster.standalone import drain_pipeline, ship_pipeline
from fuploader_dagster.takeover.run import take_over_if_needed

SAMPLES = 5000
_USAGE_ERRORS: Any = typer.BadParameter.__bases__
"""`UsageError`, of whichever copy of click this version of typer has."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From the message queue to verified archives in object storage.",
)


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help="A file of JSON lines; - for standard input.")],
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
) -> None:
    """Publish messages to a pipeline's queue, confirmed by it."""
    settings = one_pipeline(config, pipeline)
    with _open_lines(file) as lines, counting() as progress:
        total = None if file == Path("-") else _count_lines(file)
        task = progress.add_task("publishing", total=total)
        publisher = settings.source.publisher()
        try:
            report = publish_lines(
                lines, settings, publisher, progress=lambda more: progress.advance(task, more)
            )
        finally:
            publisher.close()
    say(f"{report.confirmed:,} messages are confirmed by {settings.source.describe()}")
    for number, error in report.refused:
        complain(f"line {number} was not sent: {error}")
    if report.refused:
        raise typer.Exit(4)


@app.command()
def drain(config: ConfigOption = None, pipeline: PipelineOption = None) -> None:
    """Run the drain workers of a pipeline without Dagster, until SIGTERM or Ctrl-C.

    With residue_file_upload everything that is left is sealed, packed and uploaded then.
    """
    log_to_stderr("%(asctime)s %(levelname)s %(message)s")
    settings = one_pipeline(config, pipeline)
    drain_pipeline(settings)
    if settings.residue_file_upload and (failures := ship_pipeline(settings).failures):
        for failure in failures:
            complain(f"failed and was kept: {failure}")
        raise typer.Exit(4)


@app.command(name="ship")
def ship_command(config: ConfigOption = None, pipeline: PipelineOption = None) -> None:
    """Pack and upload everything that lies sealed, without Dagster."""
    settings = one_pipeline(config, pipeline)
    take_over_if_needed(settings)
    failed = 0
    with counting() as progress:
        task = progress.add_task("shipping", total=len(sealed_partitions(settings.layout)))
        for outcome in ship(settings, settings.store.open()):
            progress.advance(task)
            if isinstance(outcome, Failed):
                failed += 1
                complain(f"{outcome.partition} failed and was kept: {outcome.error}")
    if failed:
        raise typer.Exit(4)


@app.command()
def seal(config: ConfigOption = None, pipeline: PipelineOption = None) -> None:
    """Seal all active slots now, however full they are."""
    settings = one_pipeline(config, pipeline)
    sealed = recovery.seal_on_request(settings)
    state = settings.state.store(pipeline=settings.name, node=settings.node)
    try:
        state.open()
        state.add_sealed([slot.seal.partition for slot in sealed])
    finally:
        state.close()
    say(f"sealed {len(sealed)} slots; running workers seal theirs within a second")


@app.command()
def status(
    config: ConfigOption = None, pipeline: PipelineOption = None, as_json: JsonOption = False
) -> None:
    """What the pipelines are doing, and what waits or failed."""
    chosen = [one_pipeline(config, pipeline)] if pipeline else list(load_pipelines(config).values())
    found = [_status_of(settings) for settings in chosen]
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        return
    for one in found:
        _print_status(one)


@app.command()
def dev(
    samples: Annotated[
        int | None,
        typer.Option(
            help="Sample messages for an empty queue; by default 5000 for an embedded one, none "
            "for any other.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the UI; 0: the first free from 3000.")] = 0,
    config: ConfigOption = None,
) -> None:
    """Start everything on this machine: daemon, UI, workers."""
    pipelines = load_pipelines(config)
    if not Path("workspace.yaml").exists():
        raise ConfigError(
            f"there is no workspace.yaml in {Path.cwd()}, so Dagster would not know what to load",
            hint="run it in a folder that `fuploader init` or `fuploader migrate` wrote, or "
            "start Dagster itself: `dagster dev -m fuploader_dagster.code_location`",
        )
    if config is not None:
        os.environ["FUPLOADER_CONFIG"] = str(config.absolute())
    for settings in pipelines.values():
        _put_samples(settings, samples)
    port = port or _free_port()
    say(f"UI:       http://127.0.0.1:{port}")
    for settings in pipelines.values():
        say(f"archives: {settings.store.describe()}")
    say("Ctrl-C stops everything; starting again goes on where this stopped.")
    dagster = Path(sys.executable).with_name("dagster")
    arguments = [
        "dev",
        "-w",
        "workspace.yaml",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "--log-level",
        "warning",
    ]
    sys.stdout.flush()
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Function `dev_command` is superseded")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's `&` has it ignored, for ever after
    os.execv(dagster, [str(dagster), *arguments])  # noqa: S606  so that signals reach it


def _status_of(pipeline: Pipeline) -> dict[str, Any]:
    state = pipeline.state.store(pipeline=pipeline.name, node=pipeline.node)
    try:
        state.open()
        snapshot = state.snapshot()
    finally:
        state.close()
    return {
        "pipeline": pipeline.name,
        "node": pipeline.node,
        "workers": read_statuses(pipeline.layout),
        "slots": list(snapshot.slots),
        "sealed": len(sealed_partitions(pipeline.layout)),
        "room": space_of(pipeline.storage_root.absolute(), Unshipped(pipeline.layout).bytes()),
        "stored_messages": snapshot.stored_messages,
        "duplicates": snapshot.duplicates,
        "dead_letters": snapshot.dead_letters,
        "failures": list(all_failures(pipeline.layout)),
        "mended": [
            {**msgspec.to_builtins(one), "sentence": one.sentence(pipeline.layout)}
            for one in all_mended(pipeline.layout)
            if (pipeline.layout.root / one.set_aside).exists()
        ],
    }


def _print_status(found: dict[str, Any]) -> None:
    say(
        f"{found['pipeline']} on {found['node']}: {found['stored_messages']:,} "
        f"messages stored, {found['duplicates']:,} duplicates, {found['dead_letters']:,} dead "
        f"letters, {found['sealed']:,} slots sealed and not yet in the object store"
    )
    say(_space_in_words(found["room"]))
    show_table(
        ("worker", "pid", "doing", "messages/s", "messages", "problem"),
        (
            (
                str(worker.worker),
                str(worker.pid),
                worker.doing,
                f"{worker.messages_per_second:,.0f}",
                f"{worker.messages:,}",
                worker.problem,
            )
            for worker in found["workers"]
        ),
    )
    for failure in found["failures"]:
        say(
            f"{failure.partition} failed to {failure.stage} {failure.attempts} times: "
            f"{failure.error}"
        )
    for mended in found["mended"]:
        say(f"damaged: {mended['sentence']}")


def _space_in_words(space: DiskSpace) -> str:
    inodes = "" if space.free_inodes is None else f" and {space.free_inodes:,} inodes"
    return (
        f"{space.unshipped_bytes:,} bytes are not in the object store yet; the disk has "
        f"{space.free_bytes:,} bytes{inodes} free"
    )


def _put_samples(pipeline: Pipeline, count: int | None) -> None:
    """Something to see, in an empty queue; nobody's own broker gets any without being asked."""
    if count is None:
        count = SAMPLES if isinstance(pipeline.source, EmbeddedQueue) else 0
    if not count:
        return
    publisher = pipeline.source.publisher()
    try:
        if publisher.backlog() == 0:
            published = publisher.publish(sample_messages(count, seed=_next_seed(pipeline)))
            say(f"put {published:,} sample messages into {pipeline.source.describe()}")
    finally:
        publisher.close()


def _next_seed(pipeline: Pipeline) -> int:
    """Another set of samples each time, so that a second start has something new to show."""
    return sum(1 for _ in pipeline.layout.receipts.glob("*.jsonl")) + 1


def _free_port(first: int = 3000) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ConfigError(f"no port from {first} to {first + 99} is free", hint="name one with --port")


@contextmanager
def _open_lines(file: Path) -> Iterator[Any]:
    if file == Path("-"):
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    with opened:
        yield opened


def _count_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


archives.register(app)
catalog.register(app)
migrate.register(app)
replay.register(app)
doctor.register(app)
init.register(app)
app.add_typer(dead_letters.app, name="dead-letters")


def main() -> None:
    """The entry point: one sentence and an exit code for every error of ours."""
    log_to_stderr("%(message)s", logging.WARNING)
    sys.excepthook = print_uncaught
    try:
        require_utf8_names()
        raise SystemExit(app(standalone_mode=False))
    except typer.Abort:
        complain("aborted")
        raise SystemExit(1) from None
    except _USAGE_ERRORS as error:
        _explain(error)
        raise SystemExit(error.exit_code) from None
    except FuploaderError as error:
        complain(f"error: {error}")
        raise SystemExit(_exit_code(error)) from None
    except OSError as error:
        # A folder that cannot be made, a full disk behind stdout: for a person, not for a debugger.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        complain(f"error: {error.filename or 'standard output'}: {error.strerror}")
        raise SystemExit(3 if error.errno == errno.ENOSPC else 4) from None


def _explain(error: Any) -> None:
    """What was wrong with how a command was called. Without arguments its help was shown."""
    if said := error.format_message():
        complain(error.ctx.get_usage() if error.ctx is not None else "")
        complain(f"error: {said}")


def _exit_code(error: FuploaderError) -> int:
    if isinstance(error, ConfigError):
        return 2
    if isinstance(error, TemporaryError):
        return 3
    if isinstance(error, DamagedData):
        return 5
    return 4


if __name__ == "__main__":
    main()
