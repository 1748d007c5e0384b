"""What may be imported from the package, and what pages, examples and new projects import."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from dagster.components.component_scaffolding import scaffold_object

import fuploader_dagster
from fuploader_dagster import _moved
from fuploader_dagster.component_scaffolder import SourceKind
from fuploader_dagster.settings.loading import load_backend

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "fuploader_dagster"
HOMES = fuploader_dagster._HOMES
PUBLIC = {
    "code_location",
    "errors",
    "postgres_history",
    "sqlite_history",
    "testing",
    "warm_runs",
    "resources.sources.embedded.salvage",  # `python -m` alone
}
SHOWN = [
    REPOSITORY / "README.md",
    REPOSITORY / "SECURITY.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "examples").rglob("*.py")),
    *sorted((REPOSITORY / PACKAGE / "cli" / "new_project").rglob("*.[pty]*")),
    *sorted(REPOSITORY.glob("*.yaml")),
]


def test_type_checkers_see_the_names_that_can_be_imported() -> None:
    tree = ast.parse(Path(fuploader_dagster.__file__).read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        (alias.name, alias.asname, str(node.module).removeprefix(f"{PACKAGE}."))
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {(name, name, module) for name, module in HOMES.items()}


def test_every_public_name_is_there() -> None:
    for name, module in HOMES.items():
        home = import_module(f"{PACKAGE}.{module}")
        assert getattr(fuploader_dagster, name) is getattr(home, name)
    assert set(HOMES) <= set(dir(fuploader_dagster))


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Slot'"):
        exec(f"from {PACKAGE} import Slot")


def test_workers_producers_and_scripts_load_neither_dagster_nor_an_unused_client() -> None:
    of_dagster = ("assets.", "component", "definitions", "sensors.")
    names = [name for name, module in HOMES.items() if not module.startswith(of_dagster)]
    names = [name for name in names if HOMES[name] != "resources.object_stores"]
    assert {"MessageSource", "Archive", "run_pipeline", "FileMessage", "RabbitMQ"} <= set(names)
    program = (
        f"import sys; from {PACKAGE} import {', '.join(names)};"
        "print(*({'dagster', 'boto3', 'oss2', 'qcloud_cos'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_only_public_paths_are_shown(path: Path) -> None:
    refuse_private_paths(path.read_text("utf-8"))


@pytest.mark.parametrize("kind", get_args(SourceKind))
@pytest.mark.parametrize("how", ["yaml", "python"])
def test_a_component_that_is_scaffolded_has_only_public_paths(
    tmp_path: Path, kind: str, how: str
) -> None:
    params = json.dumps({"source": kind})
    scaffold_object(tmp_path / "docs", f"{PACKAGE}.QueueToObjectStore", params, how, tmp_path)
    (written,) = (tmp_path / "docs").iterdir()
    refuse_private_paths(written.read_text("utf-8"))


def refuse_private_paths(text: str) -> None:
    for module in re.findall(rf"\b{PACKAGE}\.([a-z_]+(?:\.[a-z_]+)*)\b(?!\()", text):
        assert module in PUBLIC, f"{PACKAGE}.{module} is not public"
    imported = re.findall(rf"from {PACKAGE} import (?:\(([^)]*)\)|(.*))", text)
    for name in re.findall(r"\w+", " ".join(map("".join, imported))):
        assert name in HOMES
    for name in re.findall(rf"\b{PACKAGE}\.([A-Z]\w+)", text):
        assert name in HOMES


@pytest.mark.parametrize("old", _moved.MOVED)
def test_a_path_of_an_earlier_version_gives_the_new_module_and_a_warning(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=re.escape(_moved.MOVED[old])) as caught:
        module = import_module(old)
    assert module is import_module(_moved.MOVED[old])
    assert len(caught) == 1


def test_names_are_imported_by_an_old_path_as_well_and_the_warning_says_where() -> None:
    lines = (
        f"from {PACKAGE}.storage import ObjectStore",
        f"from {PACKAGE} import source",
        f"import {PACKAGE}.state as state",
        "print(ObjectStore.__module__, source.Message, state.StateStore)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{PACKAGE}.contracts.object_store" in done.stdout
    told = [line for line in done.stderr.splitlines() if "DeprecationWarning" in line]
    assert [line.split(":")[1] for line in told] == ["1", "2", "3"]  # shown, with their lines
    assert all(f"import what you need from {PACKAGE} itself" in line for line in told)


def test_a_program_runs_by_its_old_path_and_the_warning_names_the_new_one() -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.resources.embedded_salvage", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert f"run `python -m {PACKAGE}.resources.sources.embedded.salvage`" in done.stderr


def test_a_kind_in_yaml_may_name_an_old_path(tmp_path: Path) -> None:
    sys.modules.pop(f"{PACKAGE}.resources.embedded", None)
    values = {"kind": f"{PACKAGE}.resources.embedded:EmbeddedQueue", "path": str(tmp_path)}
    with pytest.warns(DeprecationWarning, match=r"sources\.embedded\.source"):
        source = load_backend("source", values, "here")
    assert source == fuploader_dagster.EmbeddedQueue(path=tmp_path)


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_module(f"{PACKAGE}.no_such_module")
