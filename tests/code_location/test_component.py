"""The component: the same pipeline from a defs.yaml, scaffolded, described, and checked."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import jsonschema
import pytest
import yaml
from dagster.components.component_scaffolding import scaffold_object
from dagster.components.core.component_tree import ComponentTree
from dagster.components.testing import create_defs_folder_sandbox
from dagster_shared.libraries import DagsterLibraryRegistry
from pydantic import BaseModel, ValidationError

import fuploader_dagster
from fuploader_dagster import QueueToObjectStore
from fuploader_dagster.component_scaffolder import SourceKind, StateKind, StoreKind, pipeline_name
from fuploader_dagster.contracts.functions import load_reference
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.processing.http import HttpHandler
from fuploader_dagster.settings.loading import KINDS
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


CHOICES = {"source": SourceKind, "state": StateKind, "store": StoreKind}


@pytest.mark.parametrize("how", ["yaml", "python"])
@pytest.mark.parametrize(
    ("role", "kind"), [(role, kind) for role, kinds in CHOICES.items() for kind in get_args(kinds)]
)
def test_each_kind_that_can_be_scaffolded_loads_with_the_name_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, role: str, kind: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://somebody:a-secret@db/shop")
    for file in ("defs.yaml", "component.py"):
        (tmp_path / file).unlink(missing_ok=True)
    params = json.dumps({role: kind, "queue": "on"})
    folder = tmp_path / "orders"
    scaffold_object(folder, TYPE, params, how, tmp_path)
    if how == "yaml":
        attributes = yaml.safe_load((folder / "defs.yaml").read_text("utf-8"))["attributes"]
        jsonschema.validate(attributes, QueueToObjectStore.get_model_cls().model_json_schema())
        made = QueueToObjectStore.from_attributes_dict(attributes=attributes).pipeline
    else:
        names: dict[str, Any] = {}
        exec((folder / "component.py").read_text("utf-8"), names)
        made = names["load"](ComponentTree.for_test().load_context).pipeline
    expected: type = load_reference(KINDS[role][kind])
    assert isinstance(getattr(made, role), expected)
    assert "on" in made.source.describe()


def test_a_queue_or_bucket_that_is_named_is_one_of_a_server(tmp_path: Path) -> None:
    params = json.dumps({"queue": "or: ders", "bucket": "true"})
    scaffold_object(tmp_path / "orders", TYPE, params, "yaml", tmp_path)
    written = yaml.safe_load((tmp_path / "orders" / "defs.yaml").read_text("utf-8"))["attributes"]
    url = {"env": "RABBITMQ_URL"}
    assert written["source"] == {"kind": "rabbitmq", "url": url, "queue": "or: ders"}
    assert written["store"] == {"kind": "s3", "bucket": "true", "region": "eu-central-1"}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"source": "rabbit"}, "'rabbitmq', 'redis_stream'"),
        ({"store": "local", "bucket": "archives"}, "a local store has no bucket"),
        ({"queue": ""}, "at least 1 character"),
        ({"que": "a"}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_parameters_are_refused_and_nothing_is_written(
    tmp_path: Path, params: dict[str, str], said: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        scaffold_object(tmp_path / "orders", TYPE, json.dumps(params), "yaml", tmp_path)
    assert not (tmp_path / "orders").exists()


def test_dagster_knows_the_package_and_its_version() -> None:
    made = DagsterLibraryRegistry.get()["fuploader_dagster"]
    assert made == version("fuploader-dagster") == fuploader_dagster.__version__


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


def test_settings_that_are_lists_mappings_or_numbers_are_written_as_in_a_file() -> None:
    component = load(
        {
            **ATTRIBUTES,
            "split_by": ["tenant"],
            "key": "{pipeline}/{tenant}/{archive}",
            "owners": ["team:docs"],
            "tags": {"domain": "docs"},
            "serve": True,
            "metrics_port": 9123,
        }
    )
    made = component.pipeline
    assert made.split_by == {"tenant": "tenant"}
    assert made.owners == ("team:docs",)
    assert made.tags == {"domain": "docs"}
    assert made.serve is not None
    assert made.metrics_port == 9123


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seal_messages": 0}, "seal_messages"),
        ({"store": "s3"}, "must be a mapping with a `kind`"),
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


@pytest.mark.parametrize("role", ["source", "state", "store", "process"])
def test_a_backend_is_a_union_of_its_kinds_in_the_schema_that_dagster_shows(role: str) -> None:
    made = QueueToObjectStore.get_model_cls().model_json_schema()["properties"][role]
    assert made["discriminator"] == {"propertyName": "kind"}
    *kinds, own = made["oneOf"]
    assert [one["title"] for one in kinds] == list(KINDS[role])
    for one, reference in zip(kinds, KINDS[role].values(), strict=True):
        model: type[BaseModel] = load_reference(reference)
        assert one["properties"].keys() == {"kind"} | model.model_fields.keys()
    assert own["title"] == "package.module:Class"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"source": {"kind": "rabbit", "queue": "q"}}, "'rabbit' is not one of ['rabbitmq', 'em"),
        ({"source": {"kind": "rabbitmq"}}, "'queue' is a required property"),
        ({"source": {"kind": "rabbitmq", "queue": "q", "prt": 1}}, "'prt' is not one of ['kind'"),
        ({"source": {"queue": "q"}}, "'kind' is a required property"),
        ({"store": {"kind": "s3", "bucket": 5}}, "is not valid under any of the given schemas"),
        ({"sinks": {"rows": {"kind": "sql", "table": "t"}}}, "'url' is a required property"),
        ({"notify": [{"kind": "webhook"}]}, "is not valid under any of the given schemas"),
        ({"seal_mesages": 1}, "'seal_mesages' was unexpected"),
        ({"seal_messages": []}, "[] is not valid under any of the given schemas"),
    ],
)
def test_a_mistake_is_one_sentence_of_dg_check_yaml(wrong: dict[str, Any], said: str) -> None:
    schema = QueueToObjectStore.get_model_cls().model_json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    assert [one.message for one in validator.iter_errors(ATTRIBUTES)] == []
    (error,) = validator.iter_errors({**ATTRIBUTES, **wrong})
    assert said in error.message


@pytest.mark.parametrize(
    "right",
    [
        {"source": {"kind": "rabbitmq", "queue": "{{ env.Q }}", "port": "{{ env.P }}"}},
        {"source": {"kind": "my_project.queue:OwnQueue", "anything": [1]}},
        {"source": {"kind": "rabbitmq", "queue": "q", "url": {"env": "RABBITMQ_URL"}}},
        {"split_by": ["tenant"], "owners": "team:docs", "seal_messages": "{{ env.N }}"},
        {"notify": {"kind": "redis_list", "url": {"env": "REDIS_URL"}, "key": "done"}},
    ],
)
def test_templates_own_classes_and_variables_fit_the_schema(right: dict[str, Any]) -> None:
    schema = QueueToObjectStore.get_model_cls().model_json_schema()
    jsonschema.validate({**ATTRIBUTES, **right}, schema)


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
