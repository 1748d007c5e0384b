"""The command `doctor`: checks what a pipeline depends on, with a hint for whatever is wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.contracts.diagnosis import Diagnosis, exit_code
from fuploader_dagster.health.doctor import examine
from fuploader_dagster.settings.apart import overlaps

COLOURS = {"good": "green", "warning": "yellow", "unreachable": "red", "wrong": "red"}


def doctor(
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: console.JsonOption = False,
    everything: Annotated[
        bool, typer.Option("--all/--trouble", help="Show every check, or only those not good.")
    ] = True,
) -> None:
    """Check broker, queue, state, disk, object store, clock and limits; say what to do.

    No message is taken and nothing is left behind. Exit code 0 also with warnings, 3 if something
    does not answer, 4 if something needs a person.
    """
    found: list[tuple[str, Diagnosis]] = []
    pipelines = console.chosen_pipelines(config, pipeline_name)
    for pipeline in pipelines:
        if not as_json:
            console.show_title(pipeline.name)
        for one in examine(pipeline):
            found.append((pipeline.name, one))
            if not as_json and (everything or one.verdict != "good"):
                line = f"{one.check:<12} {one.found}"
                console.show_verdict(one.verdict, COLOURS[one.verdict], line, one.hint)
    for sentence in overlaps(pipelines):
        one = Diagnosis("overlaps", "warning", sentence, "see above")
        found.append(("", one))
        if not as_json:
            console.show_verdict(one.verdict, COLOURS[one.verdict], f"{one.check:<12} {one.found}")
    if as_json:
        console.print_json([{"pipeline": name, **vars(one)} for name, one in found])
    raise typer.Exit(exit_code(one for _, one in found))
