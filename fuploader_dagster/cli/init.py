"""The command `init`: a new project of the user's, copied once from `new_project/`, or from one of
`examples/` with what all projects need from there.

What must always hold: no existing file is touched. If one of ours would replace it nothing is
written at all, so that the same command can be repeated in another folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.errors import ConfigError

TEMPLATE = Path(__file__).with_name("new_project")
_EXAMPLES = Path(__file__).with_name("examples")
_PLAIN = "queue-to-bucket"
EXAMPLES = (_PLAIN, *sorted(path.name for path in _EXAMPLES.iterdir() if path.is_dir()))
_NEEDED_BY_ALL = {"dagster.yaml", "gitignore", "pyproject.toml", "workspace.yaml"}
_LIBRARY = "fuploader-dagster"
_RENAMED = {"gitignore": ".gitignore"}
"""A `.gitignore` among our sources would be git's own."""


def init(
    folder: Annotated[
        Path, typer.Argument(help="Folder of the project; created if it is missing.")
    ] = Path(),
    example: Annotated[
        str, typer.Option(help=f"What the project does: {', '.join(EXAMPLES)}.")
    ] = _PLAIN,
) -> None:
    """Write a new project: a pipeline without servers and a parser to edit, or an example."""
    for path in write_project(folder, example):
        console.say(f"wrote {path}")
    if example != _PLAIN:
        console.say(f"next: {folder / 'README.md'} has what it needs, and the commands")
        return
    away = f"cd {folder} && " if folder != Path() else ""
    console.say(f"next: {away}fuploader doctor && fuploader dev")
    console.say(
        "then: edit strategies.py; fuploader.yaml says where the messages come from and go to"
    )


def write_project(folder: Path, example: str = _PLAIN) -> list[Path]:
    """Write a project that does what one of `EXAMPLES` does; returns its files.

    Raises `ConfigError` if one of them exists already, or the folder cannot be written.
    """
    if example not in EXAMPLES:
        raise ConfigError(f"there is no example {example!r}", hint=f"one of {', '.join(EXAMPLES)}")
    template = _template(example)
    words = {
        "PROJECT": project_name(folder),
        '"MODULES"': ", ".join(f'"{Path(name).stem}"' for name in template if _is_module(name)),
    }
    files = {
        folder / _RENAMED.get(name, name): re.sub(
            '"MODULES"|PROJECT', lambda found: words[found.group()], text
        )
        for name, text in template.items()
    }
    if there := [path for path in files if path.exists()]:
        raise ConfigError(
            f"{folder} already has {', '.join(str(path.relative_to(folder)) for path in there)}; "
            f"nothing was written",
            hint="choose another folder",
        )
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from error
    return list(files)


def write_instance(folder: Path) -> list[Path]:
    """Write the files that Dagster needs beside a configuration; returns those that were missing.

    Existing ones are not touched. Raises `ConfigError` if a file cannot be written.
    """
    written = []
    for name in ("workspace.yaml", "dagster.yaml"):
        path = folder / name
        try:
            if not path.exists():
                path.write_text((TEMPLATE / name).read_text("utf-8"), "utf-8")
                written.append(path)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return written


def project_name(folder: Path) -> str:
    """A name for the project's package, made from its folder's."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-") or "documents"
    return f"my-{name}" if name == _LIBRARY else name  # it would be a dependency of itself


def _is_module(name: str) -> bool:
    """Whether a file of a project, by its path there, is one of its Python modules."""
    return name.endswith(".py") and "/" not in name


def _template(example: str) -> dict[str, str]:
    """The files of an example, by their paths in the project."""
    if example == _PLAIN:
        return _files_in(TEMPLATE)
    shared = {name: text for name, text in _files_in(TEMPLATE).items() if name in _NEEDED_BY_ALL}
    return {**shared, **_files_in(_EXAMPLES / example)}


def _files_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
