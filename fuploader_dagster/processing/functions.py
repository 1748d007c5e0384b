"""A user's functions as a processor: `process: {kind: functions, module: app}`.

What must always hold: whatever the results depend on is in `version`: the settings that decide and
the module's source. Settings that cannot work are refused when they are loaded.

The module is imported in child processes only (`child_pool`). Loading the settings finds its file
(which imports the packages that it is in, if it is in one) and compiles it; nothing of it runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.machinery
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.functions import raised
from fuploader_dagster.contracts.processor import Processor, ProcessorSettings
from fuploader_dagster.contracts.settings import Count
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.processing.child_messages import Job
from fuploader_dagster.processing.child_pool import ChildPool
from fuploader_dagster.processing.cores import available_cores
from fuploader_dagster.processing.routes import BY_NAME
from fuploader_dagster.subprocesses import import_path

MIB = 1 << 20
QUEUED_PER_WORKER = 8
"""Enough to keep a child busy with functions of microseconds."""


class Functions(ProcessorSettings):
    """Functions of your own, in child processes (see the page on processing).

    A function that crashes, hangs or eats memory costs its item, not the run.
    """

    INDECISIVE: ClassVar[frozenset[str]] = ProcessorSettings.INDECISIVE | {
        "workers",
        "memory_bytes",
    }

    module: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
    """Module whose functions have `@processor`, as in `import`. Its source is part of what a slot
    was processed with; that of modules which it imports is not."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """Number of child processes for functions that are not async. `auto`: the cores that affinity
    and the container's CPU quota allow. Async functions share one more process."""
    memory_bytes: Annotated[int, Field(ge=64 * MIB)] | None = None
    """Memory limit of a child process (RLIMIT_DATA), so that a function that eats memory fails
    instead of the machine. A child needs about 40 MiB before it imports the module."""
    route_by: Annotated[str, Field(min_length=1)] = "cmd"
    """Header that routes are matched against (the setting `headers` has to keep it), or `name` for
    the item's name."""
    concurrency: Count = 16
    """Number of items that are processed or wait for a process at once, in one run. Where this is
    not set: 8 for each worker, at least 16."""

    @model_validator(mode="before")
    @classmethod
    def _fit_concurrency_to_workers(cls, values: Any) -> Any:
        if isinstance(values, dict) and "concurrency" not in values:
            workers = values.get("workers", "auto")
            count = available_cores() if workers == "auto" else workers
            if str(count).isdecimal():
                return {**values, "concurrency": max(16, QUEUED_PER_WORKER * int(count))}
        return values

    @field_validator("module")
    @classmethod
    def _can_be_found(cls, module: str) -> str:
        path = _file_of(module)
        if path.suffix in importlib.machinery.SOURCE_SUFFIXES:
            try:
                compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"the module {module} is not valid Python: {error}") from None
            except OSError as error:
                raise ValueError(f"cannot read {path}: {error.strerror}") from None
        return module

    @property
    def worker_count(self) -> int:
        """The number of child processes for sync functions."""
        return available_cores() if self.workers == "auto" else self.workers

    def processor(self) -> Processor:
        return self._pool(self.worker_count)

    def describe(self) -> str:
        return f"functions of the module {self.module}"

    def headers_used(self) -> Sequence[str]:
        return () if self.route_by == BY_NAME else (self.route_by,)

    def version(self) -> str:
        return hashlib.sha256(f"{super().version()} {self.source_digest()}".encode()).hexdigest()

    def source_digest(self) -> str:
        """The digest of the module's file; of a package, of all its Python files."""
        try:
            path = _file_of(self.module)
            files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
            digest = hashlib.sha256()
            for file in files:
                content = file.read_bytes()
                name = file.relative_to(path.parent)
                digest.update(f"{name} {len(content)}\n".encode("utf-8", "surrogateescape"))
                digest.update(content)
        except ValueError as error:
            raise ConfigError(f"process.module: {error}") from None
        except OSError as error:
            raise ConfigError(f"cannot read the source of {self.module}: {error}") from error
        return digest.hexdigest()

    def examine(self) -> Iterator[Diagnosis]:
        """Import the module in a child process, and say which routes it has."""
        pool = self._pool(1)

        async def look() -> list[str]:
            try:
                await pool.open()
                return pool.routes
            finally:
                await pool.close()

        routes = asyncio.run(look())
        yield Diagnosis(
            "processor",
            "good",
            f"{self.describe()}, {self.worker_count} processes; routes: {', '.join(routes)}",
        )

    def _pool(self, workers: int) -> ChildPool:
        job = Job(
            module=self.module,
            route_by=self.route_by,
            sys_path=import_path(),
            parent=os.getpid(),
            timeout_seconds=self.timeout_seconds,
            max_result_bytes=self.max_result_bytes,
            memory_bytes=self.memory_bytes,
        )
        return ChildPool(job, workers, self.source_digest)


def _file_of(module: str) -> Path:
    """The file that a module would be imported from. Raises `ValueError` if there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # a package that it is in may raise anything
        raise ValueError(f"cannot find the module {module}: {raised(error)}") from error
    if spec is None:
        raise ValueError(f"there is no module {module}")
    if not spec.has_location or spec.origin is None:
        raise ValueError(f"the module {module} has no file of its own")
    return Path(spec.origin)
