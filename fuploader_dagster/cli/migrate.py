"""The command `migrate`: from FUploader to here, the plan first.

Without a configuration it writes one, from the environment and a few questions, and beside it what
Dagster needs to start there. With one it takes over what FUploader left: it shows the plan, asks,
applies it and reports. Nothing else takes over; a pipeline with leftovers does not start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.init import write_instance
from fuploader_dagster.cli.words import counted
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.intake.leftovers import root_of, what_is_left
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.places import CONFIG_VARIABLE, DEFAULT_FILE
from fuploader_dagster.takeover.configuration import Answers, write_configuration
from fuploader_dagster.takeover.rivals import refuse_rivals

if TYPE_CHECKING:
    from fuploader_dagster.takeover.plan import Plan

_LISTED = 50


def migrate(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and change nothing.")
    ] = (False),
    stopped: Annotated[
        bool, typer.Option("--stopped", help="Skip the check that FUploader does not run.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    write: Annotated[
        bool, typer.Option("--write-config", help="Write a configuration and nothing else.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="FUploader's task_name.")] = None,
    storage_root: Annotated[str | None, typer.Option(help="FUploader's storage_root.")] = None,
    queue: Annotated[str | None, typer.Option(help="The queue's name.")] = None,
    provider: Annotated[str | None, typer.Option(help="cos, oss or s3.")] = None,
    bucket: Annotated[str | None, typer.Option(help="The bucket's name.")] = None,
    region: Annotated[str | None, typer.Option(help="The bucket's region.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="The store's endpoint.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Key template, or package.module:function.")
    ] = None,
    parser: Annotated[str | None, typer.Option(help="package.module:function.")] = None,
    file_name: Annotated[str | None, typer.Option(help="package.module:function.")] = None,
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
) -> None:
    """Take over what FUploader left: its directories, archives and Redis keys.

    Shows the plan and asks first. If there is no configuration file, writes one instead, from
    FUploader's environment variables and the options or answers given here.
    """
    if console.chosen_module(config) and not write:
        _take_over(config, pipeline_name, stopped=stopped, yes=yes, dry_run=dry_run)
        return
    named = console.configuration_file(config)
    path = named or Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_FILE))
    if dry_run and not path.exists():
        raise ConfigError(
            f"there is no configuration file {path} that says where FUploader kept its data",
            hint="`fuploader migrate` without --dry-run writes one",
        )
    if write or not path.exists():
        given = {
            "name": name,
            "storage_root": storage_root,
            "queue": queue,
            "provider": provider,
            "bucket": bucket,
            "region": region,
            "endpoint": endpoint,
            "key": key,
            "parser": parser,
            "file_name": file_name,
        }
        _write(path, {setting: value for setting, value in given.items() if value}, yes=yes)
        return
    _take_over(config, pipeline_name, stopped=stopped, yes=yes, dry_run=dry_run)


def _take_over(
    config: Path | None, name: str | None, *, stopped: bool, yes: bool, dry_run: bool
) -> None:
    from fuploader_dagster.takeover import look, run  # noqa: PLC0415  loads the client of Redis

    pipeline = console.one_pipeline(config, name)
    refuse_rivals(pipeline, console.configured(config).values())
    plan = run.examine(pipeline, stopped=stopped)
    if plan.alive:
        console.complain(f"FUploader still runs: {plan.alive}")
    if not plan and not what_is_left(pipeline):
        console.say(f"nothing of FUploader's is left in {root_of(pipeline)}")
        return
    _show(plan, pipeline)
    if dry_run:
        return
    look.refuse_if_alive(plan.alive, root_of(pipeline))
    if not yes:
        typer.confirm("Take over?", abort=True)
    with console.counting() as progress:
        task = progress.add_task("taking over", total=plan.files)
        sealed = run.take_over(
            pipeline, stopped=stopped, progress=lambda n: progress.advance(task, n)
        )
    files = counted(sum(one.seal.messages for one in sealed), "file")
    console.say(f"sealed {counted(len(sealed), 'slot')} with {files}")
    console.say("next: `fuploader ship` uploads them now; a running Dagster does so by itself")


def _write(path: Path, given: dict[str, str], *, yes: bool) -> None:
    answers = Answers.from_environment(os.environ, given)
    if not yes:
        for question in answers.questions():
            answers = answers.with_answer(
                question.setting, typer.prompt(question.text, default=question.default)
            )
    if missing := [q.option for q in answers.questions() if not q.default]:
        raise ConfigError(
            f"the configuration needs {', '.join(missing)}",
            hint="give these options, or leave out --yes to be asked",
        )
    write_configuration(path, answers)
    for written in (path, *write_instance(path.parent)):
        console.say(f"wrote {written}")
    for variable in answers.secrets():
        state = "is set" if os.environ.get(variable) else "must be set"
        console.say(f"{variable} {state} in the environment")
    console.say("next: `fuploader migrate --dry-run` shows what it would take over")


def _show(plan: Plan, pipeline: Pipeline) -> None:
    """Print the plan line by line, at most `_LISTED` lines of it."""
    lines = [f"finish {path}" for path in plan.finish]
    for step in plan.adopt:
        drops = f", except {len(step.drop):,}" if step.drop else ""
        lines.append(
            f"adopt {step.directory.path}: {counted(len(step.directory.files), 'file')}{drops}"
        )
        reasons = sorted(set(step.drop.values()))
        lines += [f"      because {reason}" for reason in reasons[:3]]
    for taken in plan.archives:
        what = "as it is" if taken.only is None else f"{counted(len(taken.only), 'file')} of it"
        lines.append(f"ship {taken.archive.path}: {what}")
    lines += [f"remove {step.path}: {step.because}" for step in plan.remove]
    lines += [f"set aside {step.path}: {step.because}" for step in plan.aside]
    lines += [f"remove the empty {path}" for path in plan.empty]
    lines += [f"forget the key {key}" for key in plan.forget]
    for line in lines[:_LISTED]:
        console.say(line)
    if len(lines) > _LISTED:
        console.say(f"... and {len(lines) - _LISTED:,} more")
    for remark in plan.remarks:
        console.say(f"note: {remark}")
    console.say(
        f"{counted(plan.files, 'file')} of "
        f"{counted(len(plan.adopt), 'directory', 'directories')} and "
        f"{counted(len(plan.archives), 'archive')} to take over from {root_of(pipeline)}"
    )
