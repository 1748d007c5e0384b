"""Relative paths in a configuration file are relative to the file, not to who reads it.

What must always hold: a command, a code server and a worker that read one file mean one folder,
wherever they were started. In a component's file, which is among the code of a project, paths are
relative to the project's folder; in Python, to the working folder, as in all of Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_folder: ContextVar[Path | None] = ContextVar("folder of the configuration", default=None)


@contextmanager
def relative_to(folder: Path) -> Iterator[None]:
    """Paths of settings that are made within start in this folder."""
    # Where both are the same, paths stay short: for people, and as they were given.
    before = _folder.set(None if folder.resolve() == Path.cwd() else folder.resolve())
    try:
        yield
    finally:
        _folder.reset(before)


def placed(path: Path) -> Path:
    """The path that a setting means."""
    folder = _folder.get()
    return path if folder is None else folder / path
