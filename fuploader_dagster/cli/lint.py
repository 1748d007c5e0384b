"""The command `lint`: checks a configuration alone, without network and without secrets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.doctor import COLOURS
from fuploader_dagster.cli.exit_codes import WRONG_USAGE
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.health.doctor import prefetch_against_batch, strategies
from fuploader_dagster.settings.apart import overlaps, refuse_shared_folders
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.secret import unset_variables


def lint(config: console.ConfigOption = None, as_json: console.JsonOption = False) -> None:
    """Check the configuration alone: no network, no secrets, nothing written.

    Says what is wrong with each pipeline. For CI: exit code 2 if anything is, 0 also with warnings.
    `fuploader doctor` checks the rest: what answers, rights, disk and clock.
    """
    found: list[tuple[str, Diagnosis]] = []
    try:
        pipelines, wrong = console.read_configured(config)
        for name, error in wrong.items():
            found += _wrong(name, error)
        found += [*_of_each(pipelines.values()), *_of_all(pipelines.values())]
        refuse_shared_folders(pipelines.values())
    except ConfigError as error:
        found += _wrong("", error)
    if as_json:
        console.print_json([{"pipeline": name, **vars(one)} for name, one in found])
    else:
        for name, one in found:
            line = f"{name or one.check:<12} {one.found}"
            console.show_verdict(one.verdict, COLOURS[one.verdict], line, one.hint)
    if any(one.verdict == "wrong" for _, one in found):
        raise typer.Exit(WRONG_USAGE)


def _wrong(name: str, error: ConfigError) -> Iterator[tuple[str, Diagnosis]]:
    for one in error.each:
        yield name, Diagnosis("settings", "wrong", one.message, one.hint)


def _of_each(pipelines: Iterable[Pipeline]) -> Iterator[tuple[str, Diagnosis]]:
    for pipeline in pipelines:
        yield pipeline.name, Diagnosis("settings", "good", "every setting can be used")
        for one in [prefetch_against_batch(pipeline), *strategies(pipeline)]:
            if one.verdict != "good":
                yield pipeline.name, replace(one, found=f"{one.check}: {one.found}")
        if unset := sorted(set(unset_variables(pipeline))):
            said = f"not set here, and needed where it runs: {', '.join(unset)}"
            yield pipeline.name, Diagnosis("secrets", "good", said)


def _of_all(pipelines: Iterable[Pipeline]) -> Iterator[tuple[str, Diagnosis]]:
    for sentence in overlaps(pipelines):
        yield "", Diagnosis("overlaps", "warning", sentence)
