"""The settings of a user's functions, and what is refused before an item is processed."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from pydantic import ValidationError

from fuploader_dagster import Functions, Item
from fuploader_dagster.errors import ConfigError, FuploaderError, StrategyError
from fuploader_dagster.settings.loading import load_backend

MODULE = "tests.functions_for_tests"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def module(folder: Path, source: str) -> str:
    name = f"app_{uuid.uuid4().hex}"
    (folder / f"{name}.py").write_text(f"from fuploader_dagster import Item, processor\n{source}")
    return name


def open_and_close(settings: Functions) -> None:
    async def both() -> None:
        processor = settings.processor()
        try:
            await processor.open()
        finally:
            await processor.close()

    asyncio.run(both())


def load(**values: object) -> Functions:
    settings = load_backend("process", {"kind": "functions", **values}, "pipelines.p.process")
    assert isinstance(settings, Functions)
    return settings


def test_yaml_names_the_module_and_everything_else_has_a_default() -> None:
    settings = load(module=MODULE)
    assert settings == Functions(module=MODULE)
    assert settings.worker_count >= 1
    assert settings.concurrency >= 16
    assert MODULE in settings.describe()


@pytest.mark.parametrize(
    ("values", "concurrency"),
    [
        ({"workers": 1}, 16),
        ({"workers": 4}, 32),
        ({"workers": "4"}, 32),  # from the environment
        ({"workers": 4, "concurrency": 3}, 3),
    ],
)
def test_unless_it_is_set_the_concurrency_keeps_all_workers_busy(
    values: dict[str, object], concurrency: int
) -> None:
    assert load(module=MODULE, **values).concurrency == concurrency


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "module: Field required"),
        ({"module": "no_such_module"}, "there is no module no_such_module"),
        ({"module": "no_such.module"}, "cannot find the module no_such.module"),
        ({"module": "app:function"}, "String should match pattern"),
        ({"module": "../app"}, "String should match pattern"),
        ({"module": "sys"}, "the module sys has no file of its own"),
        ({"module": MODULE, "workers": 0}, "workers"),
        ({"module": MODULE, "workers": "many"}, "workers"),
        ({"module": MODULE, "memory_bytes": 1000}, "memory_bytes"),
        ({"module": MODULE, "timeout": 3}, "did you mean timeout_seconds"),
    ],
)
def test_what_cannot_work_is_refused_when_the_settings_are_loaded(
    values: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**values)
    assert said in str(caught.value)


def test_a_module_that_is_no_python_is_refused_when_the_settings_are_loaded(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not valid Python: .*line 2"):
        load(module=module(folder, "def f(:\n"))


def test_loading_the_settings_runs_nothing_of_the_module(folder: Path) -> None:
    name = module(
        folder, f"open({str(folder / 'ran')!r}, 'w')\n@processor\ndef f(item): return 1\n"
    )
    settings = load(module=name)
    assert settings.version()
    assert not (folder / "ran").exists()
    open_and_close(settings)
    assert (folder / "ran").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_thing\n", r"cannot be imported: ModuleNotFoundError: .*line 2\)"),
        ("raise SystemExit(3)\n", "cannot be imported: SystemExit: 3"),
        ("x = 1\n", "has no processor"),
        ("@processor(route='(')\ndef f(item): ...\n", "is not a regular expression"),
        ("@processor\ndef f(): ...\n", "cannot be called as"),
        ("@processor\ndef f(item): ...\n@processor\ndef f(item): ...\n", "under a name"),
        ("import os; os._exit(9)\n", "could not import the module .*exit code 9"),
        ("import os\nif os.fork() == 0: raise ValueError\nx = 1\n", "has no processor"),
    ],
)
def test_a_module_that_cannot_be_used_stops_the_step(folder: Path, source: str, said: str) -> None:
    settings = load(module=module(folder, source))
    with pytest.raises(FuploaderError, match=said) as caught:
        open_and_close(settings)
    assert isinstance(caught.value, StrategyError) == ("exit code" not in said)


def test_all_children_start_at_once(folder: Path) -> None:
    """Each waits in its import for the others."""
    together = f"""
import os, pathlib, time
here = pathlib.Path({str(folder)!r})
(here / f"started-{{os.getpid()}}").touch()
end = time.monotonic() + 100
while len(list(here.glob("started-*"))) < 3:
    assert time.monotonic() < end, "the others were not started"
    time.sleep(0.01)
"""
    open_and_close(
        load(module=module(folder, f"{together}@processor\ndef f(item): ...\n"), workers=3)
    )


def test_the_version_follows_the_source_and_what_decides_the_results(folder: Path) -> None:
    name = module(folder, "@processor\ndef f(item): return 1\n")
    settings = load(module=name)
    same = load(module=name, workers=7, memory_bytes=1 << 30, timeout_seconds=3)
    assert settings.version() == same.version()
    assert settings.version() != load(module=name, route_by="name").version()
    before = settings.version()
    (folder / f"{name}.py").write_text("@processor\ndef f(item): return 2\n")
    assert settings.version() != before
    (folder / f"{name}.py").unlink()
    with pytest.raises(ConfigError, match=r"process\.module|cannot read"):
        settings.version()


def test_the_version_of_a_package_follows_all_its_files(folder: Path) -> None:
    (folder / "app_as_package").mkdir()
    (folder / "app_as_package/__init__.py").write_text("from app_as_package.other import f\n")
    other = folder / "app_as_package/other.py"
    other.write_text("1")
    settings = load(module="app_as_package")
    before = settings.version()
    other.write_text("2")
    assert settings.version() != before


def test_doctor_imports_the_module_and_says_its_routes(folder: Path) -> None:
    name = module(folder, "@processor(route='a/.*')\ndef f(item): return 1\n")
    (found,) = load(module=name, workers=3).examine()
    assert (found.check, found.verdict) == ("processor", "good")
    assert "3 processes; routes: a/.*" in found.found
    with pytest.raises(StrategyError, match="has no processor"):
        list(load(module=module(folder, "")).examine())


def test_a_small_memory_limit_is_enough_for_a_small_function() -> None:
    settings = Functions(module=MODULE, workers=1, memory_bytes=64 << 20)

    async def one() -> object:
        processor = settings.processor()
        await processor.open()
        try:
            return await processor.process([Item("n", b"echo")])
        finally:
            await processor.close()

    ((result,),) = asyncio.run(one())  # type: ignore[misc]
    assert result.content == b"echo"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Functions(module=MODULE).module = "other"
