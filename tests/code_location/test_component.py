"""The component: the same pipeline from a defs.yaml, scaffolded, described, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.component_scaffolding import scaffold_object
from dagster.components.core.component_tree import ComponentTree
from dagster.components.testing import create_defs_folder_sandbox

from fuploader_dagster import QueueToObjectStore
from fuploader_dagster.component import pipeline_name
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.processing.http import HttpHandler
from fuploader_dagster.settings.pipeline import Pipeline
from tests.settings import embedded_parts
from tests.sinks_for_tests import RowsFile

TYPE = "fuploader_dagster.QueueToObjectStore"


@pytest.mark.parametrize("how", ["yaml", "python"])
def test_what_is_scaffolded_loads_and_gives_a_pipeline_named_for_its_folder(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.defs_folder_path / "My docs"
        scaffold_object(folder, TYPE, None, how, sandbox.project_root)
        with sandbox.build_all_defs() as definitions:
            keys = {key.to_user_string() for key in definitions.resolve_all_asset_keys()}
            assert "my_docs/uploaded_archive" in keys
            assert definitions.resolve_sensor_def("my_docs_drain")
            assert definitions.resolve_job_def("my_docs_ship")


def load(attributes: dict[str, Any]) -> QueueToObjectStore:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            component_cls=QueueToObjectStore,
            defs_path="docs",
            defs_yaml_contents={"type": TYPE, "attributes": attributes},
        )
        with sandbox.load_component_and_build_defs(defs_path=folder) as (component, _):
            assert isinstance(component, QueueToObjectStore)
            return component


ATTRIBUTES = {
    "name": "docs",
    **embedded_parts(),
}


def test_attributes_are_a_pipelines_settings_with_dagsters_templates_filled_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOW_MANY", "700")
    component = load(
        {
            **ATTRIBUTES,
            "seal_messages": "{{ env.HOW_MANY }}",
            "key": "docs/{sealed_at:%Y%m%d}/{archive}",
            "parser": "json:loads",
            "running": False,
        }
    )
    assert component.pipeline.seal_messages == 700
    assert component.pipeline.parser is not None
    assert component.pipeline.key == "docs/{sealed_at:%Y%m%d}/{archive}"
    assert component.running is False


def test_a_processor_and_lists_are_written_as_in_a_file() -> None:
    process = {"kind": "http", "url": "http://127.0.0.1:8001/", "concurrency": 6}
    component = load({**ATTRIBUTES, "process": process, "headers": ["cmd", "content-type"]})
    assert component.pipeline.headers == ("cmd", "content-type")
    assert isinstance(component.pipeline.process, HttpHandler)
    assert component.pipeline.process.concurrency == 6


def test_sinks_are_written_as_in_a_file() -> None:
    kind = "tests.sinks_for_tests:RowsFile"
    sinks = {"rows": {"kind": kind, "path": "rows.sqlite", "columns": ["id"], "required": True}}
    made = load({**ATTRIBUTES, "sinks": sinks}).pipeline.sinks
    path = Path(made["rows"].path)
    assert path.name == "rows.sqlite" and path.is_absolute()  # in the project's folder
    assert made == {"rows": RowsFile(path=path, columns=["id"], required=True)}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seal_messages": 0}, "seal_messages"),
        ({"seal_mesages": 1}, "seal_mesages"),
        ({"source": {"kind": "rabbit", "queue": "q"}}, "kinds are rabbitmq, embedded"),
        ({"store": {"kind": "s3"}}, "bucket"),
    ],
)
def test_a_wrong_attribute_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception) as caught:
        load({**ATTRIBUTES, **wrong})
    errors = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert any(said in str(error) for error in errors)


def test_every_setting_is_described_in_the_schema_that_dagster_shows() -> None:
    model = QueueToObjectStore.get_model_cls()
    properties = model.model_json_schema()["properties"]
    assert properties.keys() == Pipeline.model_fields.keys() | {"running", "failure_webhook"}
    assert all(one["description"] for one in properties.values())
    assert properties["seal_messages"]["default"] == 10_000
    assert "mirror" in properties["store"]["description"]


def test_an_impossible_pipeline_is_the_same_sentence_as_from_a_file() -> None:
    with pytest.raises(ConfigError, match=r"prefetch_count \(10\) must be larger"):
        QueueToObjectStore.from_attributes_dict(
            attributes={**ATTRIBUTES, "prefetch_count": 10, "commit_messages": 10}
        )


def test_two_in_one_project_stand_side_by_side() -> None:
    both = [load({**ATTRIBUTES, "name": name}) for name in ("docs", "images")]
    merged = dg.Definitions.merge(
        *(one.build_defs(ComponentTree.for_test().load_context) for one in both)
    )
    assert len(merged.resolve_all_asset_keys()) == 10


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("documents", "documents"),
        ("My docs-2", "my_docs_2"),
        ("2024", "pipeline_2024"),
        ("é", "pipeline"),
    ],
)
def test_a_folders_name_becomes_one_that_a_pipeline_can_have(folder: str, name: str) -> None:
    assert pipeline_name(folder) == name
