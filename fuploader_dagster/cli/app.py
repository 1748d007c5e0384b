"""The command line, `fuploader --help`: puts the commands together and runs them.

Every command reads the same configuration as the code location: `$FUPLOADER_CONFIG`, else
`fuploader.yaml`. A project that has its pipelines in Python names the module before the command
(`fuploader -m shop.definitions status`), or in `$FUPLOADER_MODULE`.

What must always hold: a command costs only what it needs. So this module imports none of them; the
table below has their names and help, and the module of the one that is called is imported then.
"""

from __future__ import annotations

import errno
import logging
import sys
from importlib import import_module
from keyword import iskeyword
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import REFUSED, TRY_LATER, exit_code_of
from fuploader_dagster.disk.names_in_utf8 import require_utf8_names
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.settings import logs
from fuploader_dagster.settings.logs import FORMAT_VARIABLE, LEVEL_VARIABLE, LogFormat, LogLevel
from fuploader_dagster.settings.places import MODULE_VARIABLE
from fuploader_dagster.settings.safe_text import log_to_stderr, print_uncaught

_USAGE_ERRORS: Any = typer.BadParameter.__bases__
"""`UsageError`, of whichever copy of click this version of typer has."""


class Command(NamedTuple):
    """A command, or a group of commands, whose module is imported when it is called."""

    panel: str
    name: str
    module: str
    """The file in `cli/` that has it. It is called like the command there, with underscores,
    and one more after a word of Python's: `try_`."""
    help: str
    """The first sentence of its own help."""

    def load(self) -> Any:
        """Import it, as typer's own object for it."""
        home = import_module(f"{__package__}.{self.module}")
        name = self.name.replace("-", "_")
        found = getattr(home, f"{name}_" if iskeyword(name) else name)
        around = typer.Typer(pretty_exceptions_enable=False)
        if isinstance(found, typer.Typer):
            around.add_typer(found, name=self.name, rich_help_panel=self.panel)
        else:
            around.command(self.name, rich_help_panel=self.panel)(found)
        return typer.main.get_group(around).commands[self.name]


_START, _PAUSE = "Set up and start", "Pause"
_ALONE, _LOOK, _ARCHIVES = "Run without Dagster", "Look at a pipeline", "Use archives"
COMMANDS = [
    Command(
        _START,
        "init",
        "init",
        "Write a new project: a pipeline without servers and a parser to edit, or an example.",
    ),
    Command(
        _START,
        "doctor",
        "doctor",
        "Check broker, queue, state, disk, object store, clock and limits; say what to do.",
    ),
    Command(
        _START,
        "lint",
        "lint",
        "Check the configuration alone: no network, no secrets, nothing written.",
    ),
    Command(_START, "schema", "schema", "Print the JSON Schema of fuploader.yaml, for editors."),
    Command(
        _START,
        "dev",
        "dev",
        "Start everything on this machine: Dagster's daemon and UI, and the drain workers.",
    ),
    Command(
        _START,
        "serve",
        "serve",
        "Serve the pipelines that say `serve` over HTTP, until SIGTERM or Ctrl-C.",
    ),
    Command(
        _START,
        "migrate",
        "migrate",
        "Take over what FUploader left: its directories, archives and Redis keys.",
    ),
    Command(
        _PAUSE,
        "pause",
        "pause",
        "Pause a pipeline on all its nodes until `fuploader resume`, also across restarts.",
    ),
    Command(
        _PAUSE,
        "resume",
        "pause",
        "End a pause, whoever asked for it, on all nodes of the pipeline.",
    ),
    Command(
        _ALONE, "publish", "publish", "Publish messages to a pipeline's queue, each confirmed."
    ),
    Command(
        _ALONE,
        "drain",
        "stages",
        "Run the drain workers of a pipeline without Dagster, until SIGTERM or Ctrl-C.",
    ),
    Command(_ALONE, "seal", "stages", "Seal all active slots now, however full they are."),
    Command(
        _ALONE,
        "process",
        "process",
        "Process one file with a pipeline's processor and its limits, to try it out.",
    ),
    Command(
        _ALONE,
        "ship",
        "stages",
        "Pack and upload all sealed slots now, and store their rows in the sinks, without Dagster.",
    ),
    Command(
        _ALONE,
        "fetch",
        "fetch",
        "Fetch a list of addresses, many at once, into a folder or an archive.",
    ),
    Command(
        _LOOK, "status", "status", "Show what the pipelines are doing, and what waits or failed."
    ),
    Command(
        _LOOK,
        "metrics",
        "metrics",
        "Print the metrics of the pipelines for Prometheus, or write them for node_exporter.",
    ),
    Command(
        _LOOK,
        "partitions",
        "partitions",
        "List the partitions of this node with their state, sizes and age: those on the disk, then "
        "the stored ones, each newest first.",
    ),
    Command(
        _LOOK,
        "try",
        "try_message",
        "Show what a pipeline would make of a message: its file's name, headers, digest and key.",
    ),
    Command(
        _LOOK,
        "dead-letters",
        "dead_letters",
        "Messages that could not become files: list, show, requeue, export, discard.",
    ),
    Command(
        _ARCHIVES,
        "ls",
        "archives",
        "List the members of an archive in their order, with their sizes.",
    ),
    Command(_ARCHIVES, "cat", "archives", "Write one member to stdout, verified."),
    Command(
        _ARCHIVES,
        "verify",
        "verify",
        "Read whole archives and compare every byte with what was recorded when it was written.",
    ),
    Command(
        _ARCHIVES, "restore", "archives", "Unpack an archive; of a damaged one, what is intact."
    ),
    Command(
        _ARCHIVES,
        "find",
        "catalog",
        "Show where the message of this name or id is: in which slot or archive, at which sinks, "
        "or among the dead letters.",
    ),
    Command(
        _ARCHIVES,
        "replay",
        "replay",
        "Publish archived messages to a queue again, in their order, each confirmed.",
    ),
    Command(
        _ARCHIVES,
        "catalog",
        "catalog",
        "The catalog, in which `find` looks up file names: rebuild.",
    ),
]
"""In the order of `--help`."""


class _CalledCommands(TyperGroup):
    """Lists all commands, and imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        called = next((one.load() for one in COMMANDS if one.name == name), None)
        return name, called, rest


def loaded_commands() -> dict[str, Any]:
    """All commands by name: typer's own objects, with their options."""
    return {one.name: one.load() for one in COMMANDS}


app = typer.Typer(
    cls=_CalledCommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415  takes long, and few ask

        console.say(f"fuploader {version('fuploader-dagster')}")
        raise typer.Exit


@app.callback()
def choose(
    config: console.ConfigOption = None,
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            "-m",
            help="Module with Dagster definitions that have the pipelines, as `dagster dev -m` "
            f"takes it; package.module:name if it has several. Default: ${MODULE_VARIABLE}.",
        ),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            help=f"How long-running commands log to stderr. Default: ${FORMAT_VARIABLE}, else text."
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help=f"The least that they log. Default: ${LEVEL_VARIABLE}, else info."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """From a message queue to verified archives in object storage."""
    console.choose(config, module)
    logs.choose(log_format, log_level)


def _not_loaded() -> None:
    """In the place of every command, until it is called."""


for _command in COMMANDS:
    app.command(_command.name, help=_command.help, rich_help_panel=_command.panel)(_not_loaded)


def main() -> None:
    """The entry point: one sentence and an exit code for every error of ours."""
    log_to_stderr("%(message)s", logging.WARNING)
    sys.excepthook = print_uncaught
    try:
        require_utf8_names()
        raise SystemExit(app(standalone_mode=False))
    except typer.Abort:
        console.complain("aborted")
        raise SystemExit(1) from None
    except _USAGE_ERRORS as error:
        _explain(error)
        raise SystemExit(error.exit_code) from None
    except FuploaderError as error:
        console.complain(f"error: {error}")
        raise SystemExit(exit_code_of(error)) from None
    except OSError as error:
        # A folder that cannot be made, a full disk behind stdout: for a person, not for a debugger.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        console.complain(f"error: {error.filename or 'standard output'}: {error.strerror}")
        raise SystemExit(TRY_LATER if error.errno == errno.ENOSPC else REFUSED) from None


def _explain(error: Any) -> None:
    """Say what is wrong with the usage. A call without arguments has shown the help instead."""
    if said := error.format_message():
        console.complain(error.ctx.get_usage() if error.ctx is not None else "")
        console.complain(f"error: {said}")


if __name__ == "__main__":
    main()
