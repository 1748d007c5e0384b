"""All commands for projects without fuploader.yaml: from a module, and from a component's file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from fuploader_dagster.disk.layout import Layout
from tests.drains import stored
from tests.integration.test_cli import FUPLOADER, configure, fuploader
from tests.servers.ports import wait_until
from tests.settings import archived_files, embedded_parts

MODULE = """\
import json

import dagster as dg
from fuploader_dagster import EmbeddedQueue, Local, Pipeline, SqliteState, build_definitions


def parsed(body):
    return json.loads(body)


documents = Pipeline(
    name="documents",
    source=EmbeddedQueue(path="queue"),
    state=SqliteState(path="state.sqlite"),
    store=Local(path="objects"),
    message_format="json",
    name_fields=("n",),
    parser=parsed,
    min_free_bytes=0,
    residue_file_upload=True,
)
defs = dg.Definitions.merge(dg.Definitions(), build_definitions(documents))
"""
TYPE = "fuploader_dagster.QueueToObjectStore"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "definitions.py").write_text(MODULE)
    (tmp_path / "messages.jsonl").write_text("".join(f'{{"n": "{n}.json"}}\n' for n in range(40)))
    return tmp_path


def test_commands_work_with_the_pipelines_of_a_module(project: Path) -> None:
    module = ("-m", "shop.definitions")
    published = fuploader(project, *module, "publish", "messages.jsonl")
    assert published.returncode == 0, published.stderr
    paused = fuploader(project, *module, "pause", "documents", "--reason", "a test")
    assert "documents: intake and shipping paused" in paused.stdout, paused.stderr
    found = fuploader(project, "status", "--json", FUPLOADER_MODULE="shop.definitions")
    (one,) = json.loads(found.stdout)
    assert one["pipeline"] == "documents"
    assert one["parts"]["intake"]["wanted"] == "paused"
    assert one["queue"]["depth"]["waiting"] == 40
    unknown = fuploader(project, *module, "pause", "docs")
    assert unknown.returncode == 2
    assert "choose one of documents" in unknown.stderr


def test_a_drain_of_a_module_finds_the_projects_functions_and_ships(project: Path) -> None:
    fuploader(project, "-m", "shop.definitions", "publish", "messages.jsonl")
    drain = subprocess.Popen([str(FUPLOADER), "-m", "shop.definitions", "drain"], cwd=project)
    try:
        wait_until(
            lambda: len(stored(Layout(project / "data" / "documents"))) == 40,
            seconds=120,
            what="the drain",
            diagnose=str,
        )
    finally:
        drain.terminate()
        assert drain.wait(60) == 0
    assert archived_files(project / "objects").keys() == {f"{n}.json" for n in range(40)}


def test_commands_work_with_a_components_file_and_its_templates(project: Path) -> None:
    component = {
        "type": TYPE,
        "attributes": {
            "name": "{{ env.NAME_OF_IT }}",
            **embedded_parts(),
            "message_format": "json",
            "name_fields": "n",
            "seal_messages": "{{ env.HOW_MANY }}",
            "running": False,
        },
    }
    others = {"type": "no.such.Component", "attributes": {"x": 1}}
    text = f"{yaml.safe_dump(component)}---\n{yaml.safe_dump(others)}"
    (project / "defs.yaml").write_text(text)
    environment = {"NAME_OF_IT": "orders", "HOW_MANY": "7"}
    for arguments, extra in (
        (("-c", "defs.yaml", "status", "--json"), {}),
        (("status", "--json", "-c", "defs.yaml"), {}),
        (("status", "--json"), {"FUPLOADER_CONFIG": "defs.yaml"}),
    ):
        found = fuploader(project, *arguments, **environment, **extra)
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)[0]["pipeline"] == "orders"


def test_what_names_no_pipeline_or_two_places_is_a_sentence(project: Path) -> None:
    configure(project)
    both = fuploader(project, "-m", "shop.definitions", "-c", "fuploader.yaml", "status")
    assert (both.returncode, "both given" in both.stderr) == (2, True)
    in_environment = {"FUPLOADER_MODULE": "shop.definitions", "FUPLOADER_CONFIG": "fuploader.yaml"}
    both = fuploader(project, "status", **in_environment)
    assert (both.returncode, "both set" in both.stderr) == (2, True)
    one = fuploader(project, "status", "--json", "-c", "fuploader.yaml", **in_environment)
    assert json.loads(one.stdout)[0]["pipeline"] == "docs"
    missing = fuploader(project, "-m", "shop.nothing", "status")
    assert (missing.returncode, "there is no module shop.nothing" in missing.stderr) == (2, True)
    (project / "defs.yaml").write_text("type: some.Other\nattributes: {}\n")
    other = fuploader(project, "-c", "defs.yaml", "status")
    assert (other.returncode, f"no component of type {TYPE}" in other.stderr) == (2, True)
