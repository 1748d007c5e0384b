"""A new project of a user: the files in `new_project/`, copied once.

What must always hold: no file that is there is touched. If one of ours would take its place nothing
is written at all, so that the same command can be given again elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path

from fuploader_dagster.errors import ConfigError

TEMPLATE = Path(__file__).with_name("new_project")
_LIBRARY = "fuploader-dagster"
_RENAMED = {"gitignore": ".gitignore"}
"""A `.gitignore` among our sources would be git's own."""


def write_project(folder: Path) -> list[Path]:
    """Write a project that runs at once; returns its files.

    Raises `ConfigError` if one of them is there already, or the folder cannot be written.
    """
    files = {
        folder / _RENAMED.get(name, name): text.replace("PROJECT", project_name(folder))
        for name, text in _template()
    }
    if there := [path for path in files if path.exists()]:
        raise ConfigError(
            f"{folder} has {', '.join(str(path.relative_to(folder)) for path in there)} already",
            hint="nothing was written; name another folder",
        )
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from error
    return list(files)


def write_instance(folder: Path) -> list[Path]:
    """Write what Dagster needs beside a configuration to start there; returns what was missing.

    What is there stays as it is, whatever it says. Raises `ConfigError` if it cannot be written.
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
    """A name for the project's package, after its folder."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-") or "documents"
    return f"my-{name}" if name == _LIBRARY else name  # it would be a dependency of itself


def _template() -> list[tuple[str, str]]:
    return [
        (path.relative_to(TEMPLATE).as_posix(), path.read_text("utf-8"))
        for path in sorted(TEMPLATE.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    ]
