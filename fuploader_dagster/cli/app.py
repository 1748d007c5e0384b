"""The command line, `fuploader --help`: puts the commands together and runs them.

Every command reads the same configuration as the code location: `$FUPLOADER_CONFIG`, else
`fuploader.yaml`. A project that has its pipelines in Python names the module before the command
(`fuploader -m shop.definitions status`), or in `$FUPLOADER_MODULE`.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.archives import cat, ls, restore
from fuploader_dagster.cli.catalog import catalog, find
from fuploader_dagster.cli.dead_letters import dead_letters
from fuploader_dagster.cli.dev import dev
from fuploader_dagster.cli.doctor import doctor
from fuploader_dagster.cli.exit_codes import REFUSED, TRY_LATER, exit_code_of
from fuploader_dagster.cli.fetch import fetch
from fuploader_dagster.cli.init import init
from fuploader_dagster.cli.migrate import migrate
from fuploader_dagster.cli.pause import pause, resume
from fuploader_dagster.cli.process import process
from fuploader_dagster.cli.publish import publish
from fuploader_dagster.cli.replay import replay
from fuploader_dagster.cli.stages import drain, seal, ship
from fuploader_dagster.cli.status import status
from fuploader_dagster.cli.verify import verify
from fuploader_dagster.disk.names_in_utf8 import require_utf8_names
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.settings.modules import MODULE_VARIABLE
from fuploader_dagster.settings.safe_text import log_to_stderr, print_uncaught

_USAGE_ERRORS: Any = typer.BadParameter.__bases__
"""`UsageError`, of whichever copy of click this version of typer has."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, list[Callable[..., None]]] = {
    "Set up and start": [init, doctor, dev, migrate],
    "Pause": [pause, resume],
    "Run without Dagster": [publish, drain, seal, process, ship, fetch],
    "Look at a pipeline": [status],
    "Use archives": [ls, cat, verify, restore, find, replay],
}
"""By the panels of `--help`."""


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
) -> None:
    """From a message queue to verified archives in object storage."""
    console.choose(config, module)


for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(dead_letters, name="dead-letters", rich_help_panel="Look at a pipeline")
app.add_typer(catalog, name="catalog", rich_help_panel="Use archives")


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
