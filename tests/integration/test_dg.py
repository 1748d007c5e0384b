"""`dg` scaffolds the component, checks it with an asset downstream of it, and lists both.

What the page on host projects prints is what is written into the project, as it is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "host-project.md").read_text("utf-8")
TYPE = "fuploader_dagster.QueueToObjectStore"
DEFINITIONS = """\
from pathlib import Path

import dagster as dg


@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
PROJECT = """\
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "host"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A `dg` project without any definitions."""
    package = tmp_path / "src" / "host"
    (package / "defs").mkdir(parents=True)
    for module in (package / "__init__.py", package / "defs" / "__init__.py"):
        module.touch()
    (package / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


def dg(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with the warnings that a user would see."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    return subprocess.run(
        [sys.executable, "-c", "from dagster_dg_cli.cli import main; main()", *arguments],
        cwd=project,
        env={**kept, "COLUMNS": "200", "PYTHONPATH": str(project / "src"), "BUCKET": "archives"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def printed(language: str, *, having: str) -> str:
    """The block of the page that has this in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    (block,) = [one for one in blocks if having in one]
    return str(block)


def test_the_pages_component_and_its_downstream_asset_are_checked_and_listed_without_warnings(
    project: Path,
) -> None:
    defs = project / "src" / "host" / "defs"
    (defs / "documents").mkdir()
    (defs / "documents" / "defs.yaml").write_text(printed("yaml", having=TYPE))
    downstream = printed("python", having="def row_counts(")
    name = downstream.splitlines()[0].removeprefix("# ")
    (project / name).write_text(downstream)
    checked = dg(project, "check", "defs")
    assert checked.returncode == 0, checked.stderr
    assert "All definitions loaded successfully" in checked.stdout + checked.stderr
    listed = dg(project, "list", "defs", "--json")
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assets = {one["asset_key"]: one for one in found["assets"]}
    assert assets["row_counts"]["dependency_keys"] == ["documents/uploaded_archive"]
    resources = {one["name"] for one in found["resources"]}
    assert {f"documents_{one}" for one in ("store", "archives", "queue", "state")} <= resources
    assert "warning" not in (checked.stdout + checked.stderr + listed.stderr).lower()


def test_the_pages_command_scaffolds_a_component_that_is_checked(project: Path) -> None:
    (command,) = re.findall(r"^    dg (scaffold defs .*)$", PAGE, re.M)
    scaffolded = dg(project, *command.split())
    assert scaffolded.returncode == 0, scaffolded.stderr
    written = (project / "src" / "host" / "defs" / "documents" / "defs.yaml").read_text("utf-8")
    assert "  source: {kind: rabbitmq, url: {env: RABBITMQ_URL}, queue: documents}\n" in written
    assert "  store: {kind: s3, bucket: archives, region: eu-central-1}\n" in written
    checked = dg(project, "check", "defs")
    assert checked.returncode == 0, checked.stderr
    assert "warning" not in (checked.stdout + checked.stderr).lower()


def test_a_misspelled_setting_of_a_backend_is_found_by_dg_check_yaml(project: Path) -> None:
    assert dg(project, "scaffold", "defs", TYPE, "orders").returncode == 0
    file = project / "src" / "host" / "defs" / "orders" / "defs.yaml"
    text = file.read_text("utf-8")
    file.write_text(text.replace("{kind: local, path:", "{kind: local, paht:"))
    checked = dg(project, "check", "yaml")
    assert checked.returncode == 1
    said = checked.stdout + checked.stderr
    assert "attributes.store 'paht' is not one of ['kind', 'retry_budget_seconds', 'path'" in said
    assert "'path' is a required property" in said
