"""The JSON Schema of fuploader.yaml takes what the documentation shows, and refuses mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fuploader_dagster.settings.loading import KINDS
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.schema import schema

REPOSITORY = Path(__file__).parents[3]
FILES = [
    REPOSITORY / "fuploader.yaml",
    *sorted((REPOSITORY / "fuploader_dagster" / "cli").rglob("fuploader.yaml")),
    *sorted((REPOSITORY / "deploy").rglob("fuploader.yaml")),
]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCKS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.S)
    if re.search(r"^pipelines:", block, re.M)
]
GOOD = {
    "source": {"kind": "embedded", "path": "q"},
    "state": {"kind": "sqlite", "path": "s"},
    "store": {"kind": "local", "path": "o"},
}


@pytest.fixture(scope="module")
def validator() -> Any:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def errors_of(validator: Any, **changes: Any) -> list[str]:
    content = {"pipelines": {"docs": {**GOOD, **changes}}}
    return [one.message for one in validator.iter_errors(content)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_configuration_of_ours_fits(validator: Any, path: Path) -> None:
    text = path.read_text("utf-8").replace("PROJECT", "project")
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_every_configuration_in_the_documentation_fits(
    validator: Any, page: str, block: str
) -> None:
    validator.validate(yaml.safe_load(block))


def test_there_are_configurations_to_try() -> None:
    assert len(FILES) > 3
    assert len(BLOCKS) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"seal_mesages": 1},
        {"seal_messages": "many"},
        {"seal_messages": {}},
        {"message_format": "xml"},
        {"source": {"kind": "rabbit", "queue": "q"}},
        {"source": {"path": "q"}},
        {"source": {"kind": "rabbitmq", "passwort": "x", "queue": "q"}},
        {"source": {"kind": "rabbitmq"}},
        {"store": {"kind": "s3", "bucket": 5}},
        {"sinks": {"rows": {"kind": "sql", "table": "t", "typo": 1}}},
        {"notify": [{"kind": "webhook", "typo": 1}]},
    ],
)
def test_a_mistake_is_refused(validator: Any, changes: dict[str, Any]) -> None:
    assert errors_of(validator) == []
    assert errors_of(validator, **changes) != []


@pytest.mark.parametrize(
    "changes",
    [
        {"source": {"kind": "rabbitmq", "queue": "q", "url": {"env": "RABBITMQ_URL"}}},
        {"source": {"kind": "my_project.queue:OwnQueue", "anything": [1]}},
        {"name_fields": "a, b"},
        {"name_fields": ["a", "b"]},
        {"split_by": ["tenant"]},
        {"split_by": {"tenant": "meta.tenant"}},
        {"alert_webhook": {"env": "HOOK"}},
        {"parser": "strategies:parser"},
        {"notify": {"kind": "queue", "to": GOOD["source"]}},
    ],
)
def test_every_form_that_the_documentation_has_is_taken(
    validator: Any, changes: dict[str, Any]
) -> None:
    assert errors_of(validator, **changes) == []


def test_it_has_every_setting_with_its_description_and_every_kind() -> None:
    made = schema()
    properties = made["$defs"]["pipeline"]["properties"]
    assert set(properties) == set(Pipeline.model_fields) - {"name"} | {"failure_webhook"}
    assert all(one["description"] for one in properties.values())
    assert properties["seal_messages"]["default"] == 10_000
    for role, kinds in KINDS.items():
        assert made["$defs"][role]["properties"]["kind"]["anyOf"][0] == {"enum": list(kinds)}
    assert json.loads(json.dumps(made)) == made
