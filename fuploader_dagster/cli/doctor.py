"""`fuploader doctor`: what a pipeline stands on, with a hint for what is not in order."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from fuploader_dagster.cli.console import (
    ConfigOption,
    JsonOption,
    PipelineOption,
    one_pipeline,
    show_title,
    show_verdict,
)
from fuploader_dagster.contracts.diagnosis import Diagnosis, exit_code
from fuploader_dagster.health import doctor
from fuploader_dagster.settings.loading import load_pipelines

_COLOURS = {"good": "green", "warning": "yellow", "unreachable": "red", "wrong": "red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="doctor")(doctor_command)


def doctor_command(
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    as_json: JsonOption = False,
    everything: Annotated[
        bool, typer.Option("--all/--trouble", help="Show what is good as well.")
    ] = True,
) -> None:
    """Look at broker, queue, state, disk, object store, clock and limits; say what to do.

    It takes no message and leaves nothing behind. Exit code 0 also with warnings, 3 if something
    does not answer, 4 if something needs a person.
    """
    chosen = [one_pipeline(config, pipeline)] if pipeline else list(load_pipelines(config).values())
    found: list[tuple[str, Diagnosis]] = []
    for settings in chosen:
        if not as_json:
            show_title(settings.name)
        for one in doctor.examine(settings):
            found.append((settings.name, one))
            if not as_json and (everything or one.verdict != "good"):
                _print(one)
    if as_json:
        rows = [{"pipeline": name, **msgspec.to_builtins(diagnosis)} for name, diagnosis in found]
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
    raise typer.Exit(exit_code(diagnosis for _, diagnosis in found))


def _print(one: Diagnosis) -> None:
    show_verdict(one.verdict, _COLOURS[one.verdict], f"{one.check:<12} {one.found}", one.hint)
