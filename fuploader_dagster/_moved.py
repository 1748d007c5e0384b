"""Modules that documents named, by their old paths: those still work, with a DeprecationWarning.

What must always hold: an old path gives the new module itself, so a class is the same by either.
Python asks this finder last, for modules that it found nowhere else, so it costs nothing. An entry
stays for one minor release after the one that moved it (docs/compatibility.md).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

_PACKAGE = "fuploader_dagster"
GONE_IN = "0.4"
MOVED = {
    f"{_PACKAGE}.{old}": f"{_PACKAGE}.{new}"
    for old, new in {
        "archive_reader": "archives.reader",
        "diagnosis": "contracts.diagnosis",
        "loading": "settings.loading",
        "messages": "processing.producer",
        "range_source": "archives.ranges",
        "resources.embedded": "resources.sources.embedded.source",
        "resources.embedded_salvage": "resources.sources.embedded.salvage",
        "resources.rabbitmq": "resources.sources.rabbitmq.source",
        "resources.redis_state": "resources.states.redis",
        "resources.sqlite_state": "resources.states.sqlite",
        "running": "standalone",
        "secret": "settings.secret",
        "source": "contracts.source",
        "state": "contracts.state",
        "storage": "contracts.object_store",
    }.items()
}


def find_moved_modules() -> None:
    """From now on Python finds modules by their old paths."""
    sys.meta_path.append(_Finder())


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, _Loader()) if name in MOVED else None  # type: ignore[arg-type]


class _Loader:
    """Not a subclass of `importlib.abc.Loader`: importing that would take 10 ms."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Python makes an empty one, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        advice = f"import what you need from {_PACKAGE} itself, which has all public names"
        warnings.warn(_told(name, advice), DeprecationWarning, stacklevel=2)  # of the importer
        sys.modules[name] = import_module(MOVED[name])

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs. By default Python shows only the warnings of `__main__`."""
        from importlib.util import find_spec  # noqa: PLC0415 - needed here alone

        new = MOVED[fullname]
        told = _told(fullname, f"run `python -m {new}`")
        warnings.warn_explicit(told, DeprecationWarning, fullname, 0, "__main__")
        loader: Any = getattr(find_spec(new), "loader", None)
        code: CodeType | None = loader.get_code(new)
        return code


def _told(old: str, advice: str) -> str:
    return f"{old} is now {MOVED[old]}; the old path goes in version {GONE_IN}: {advice}"
