"""The command `lint`: checks a configuration alone, without network and without secrets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.doctor import COLOURS
from fuploader_dagster.cli.exit_codes import WRONG_USAGE
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.health.doctor import prefetch_against_batch, strategies
from fuploader_dagster.settings.apart import overlaps
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.secret import unset_variables


def lint(config: console.ConfigOption = None, as_json: console.JsonOption = False) -> None:
    """Check the configuration alone: no network, no secrets, nothing written.

    For CI: exit code 2 if something is wrong, 0 also with warnings. `fuploader doctor` checks the
    rest: what answers, rights, disk and clock.
    """
    try:
        pipelines = list(console.configured(config).values())
        found = [*_of_each(pipelines), *_of_all(pipelines)]
    except ConfigError as error:
        found = [("", Diagnosis("settings", "wrong", error.message, error.hint))]
    if as_json:
        console.print_json([{"pipeline": name, **vars(one)} for name, one in found])
    else:
        for name, one in found:
            line = f"{name or one.check:<12} {one.found}"
            console.show_verdict(one.verdict, COLOURS[one.verdict], line, one.hint)
    if any(one.verdict == "wrong" for _, one in found):
        raise typer.Exit(WRONG_USAGE)


def _of_each(pipelines: Sequence[Pipeline]) -> Iterator[tuple[str, Diagnosis]]:
    for pipeline in pipelines:
        yield pipeline.name, Diagnosis("settings", "good", "every setting can be used")
        for one in [prefetch_against_batch(pipeline), *strategies(pipeline)]:
            if one.verdict != "good":
                yield pipeline.name, replace(one, found=f"{one.check}: {one.found}")
        if unset := sorted(set(unset_variables(pipeline))):
            said = f"not set here, and needed where it runs: {', '.join(unset)}"
            yield pipeline.name, Diagnosis("secrets", "good", said)


def _of_all(pipelines: Sequence[Pipeline]) -> Iterator[tuple[str, Diagnosis]]:
    for sentence in overlaps(pipelines):
        yield "", Diagnosis("overlaps", "warning", sentence)
