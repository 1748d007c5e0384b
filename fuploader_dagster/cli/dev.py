"""The command `dev`: a whole pipeline on this machine, with sample messages to look at."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.words import counted
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import ConfigError, PermanentError, SlotInUse
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline

SAMPLES = 5000
_WORDS = "harbour cloud lantern copper river orchard signal paper north window".split()  # noqa: SIM905


def dev(
    samples: Annotated[
        int | None,
        typer.Option(
            help="Number of sample messages to put into an empty queue. Default: "
            f"{SAMPLES} for an embedded queue, none for any other.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port of the UI; 0 takes the first free one from 3000 on.")
    ] = 0,
    config: console.ConfigOption = None,
) -> None:
    """Start everything on this machine: Dagster's daemon and UI, and the drain workers."""
    pipelines = console.configured(config)
    module, file = console.chosen_module(config), console.configuration_file(config)
    if module is None and not Path("workspace.yaml").exists():
        raise ConfigError(
            f"there is no workspace.yaml in {Path.cwd()}, so Dagster would not know what to load",
            hint="run this in a folder that `fuploader init` or `fuploader migrate` wrote, or "
            "start Dagster itself: `dagster dev -m fuploader_dagster.code_location`",
        )
    if file is not None:
        os.environ["FUPLOADER_CONFIG"] = str(file.absolute())
    locks = [_only_here(pipeline) for pipeline in pipelines.values()]
    for pipeline in pipelines.values():
        _put_samples(pipeline, samples)
    port = port or _free_port()
    console.say(f"UI:       http://127.0.0.1:{port}")
    for pipeline in pipelines.values():
        console.say(f"archives: {pipeline.store.describe()}")
    console.say("Ctrl-C stops everything; the next start continues where this one stopped.")
    dagster = Path(sys.executable).with_name("dagster")
    code = ["-m", module.partition(":")[0]] if module else ["-w", "workspace.yaml"]
    where = [*code, "-h", "127.0.0.1", "-p", str(port)]
    sys.stdout.flush()
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Function `dev_command` is superseded")
    for lock in locks:
        lock.keep_over_exec()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's `&` leaves it ignored in this process
    # In place of this process, so that signals reach it.
    os.execv(dagster, [str(dagster), "dev", *where, "--log-level", "warning"])  # noqa: S606


def _only_here(pipeline: Pipeline) -> FileLock:
    """The lock that says that the pipeline runs under this command. Raises `PermanentError` if it
    does under another one."""
    lock = FileLock(pipeline.layout.dev_lock)
    try:
        lock.acquire()
    except SlotInUse as taken:
        raise PermanentError(
            f"`fuploader dev` runs already for pipeline {pipeline.name}: {taken.message}",
            hint="use its UI, or stop it first with Ctrl-C; two would drain the same queue",
        ) from None
    return lock


def sample_messages(count: int, *, seed: int = 1) -> Iterator[tuple[bytes, dict[str, str]]]:
    """(body, headers) pairs: documents of about 2 KB in envelopes; the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311  sample data, no secret
    for number in range(count):
        document = {
            "id": f"doc-{seed}-{number:06d}",
            "title": " ".join(dice.choices(_WORDS, k=6)),
            "text": " ".join(dice.choices(_WORDS, k=250)),
            "score": dice.random(),
        }
        content = json.dumps(document, separators=(",", ":")).encode("utf-8")
        yield encode(f"{document['id']}.json", content), {}


def _put_samples(pipeline: Pipeline, count: int | None) -> None:
    """Put something to see into an empty queue; into a broker of the user's own only if asked."""
    if count is None:
        count = SAMPLES if isinstance(pipeline.source, EmbeddedQueue) else 0
    if not count:
        return
    with closing(pipeline.source.publisher()) as publisher:
        if publisher.backlog() == 0:
            published = publisher.publish(sample_messages(count, seed=_next_seed(pipeline)))
            console.say(
                f"put {counted(published, 'sample message')} into {pipeline.source.describe()}"
            )


def _next_seed(pipeline: Pipeline) -> int:
    """A new seed for each start, so that a second one has something new to show."""
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
    raise ConfigError(
        f"no port from {first} to {first + 99} is free", hint="choose one with --port"
    )
