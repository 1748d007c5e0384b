"""`fuploader init`: a new project that runs at once, and with one function to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.cli.console import say
from fuploader_dagster.cli.scaffolding import write_project


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="init")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where; created if it is missing.")] = Path(),
) -> None:
    """Write a new project: one pipeline on embedded parts, and a parser to edit."""
    for path in write_project(folder):
        say(f"wrote {path}")
    away = f"cd {folder} && " if folder != Path() else ""
    say(f"next: {away}fuploader doctor && fuploader dev")
    say("then: edit strategies.py; fuploader.yaml says where the messages come from and go to")
