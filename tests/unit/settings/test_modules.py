"""Pipelines are found in a module's definitions, however they got into it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.modules import pipelines_of_module

BEGINNING = """
import dagster as dg
from fuploader_dagster import EmbeddedQueue, Local, Pipeline, SqliteState
from fuploader_dagster import build_assets, build_definitions, build_sensors

def pipeline(name, **values):
    return Pipeline(
        name=name,
        source=EmbeddedQueue(path="queue"),
        state=SqliteState(path="state.sqlite"),
        store=Local(path="objects"),
        **values,
    )
"""
ON_TWO_NODES = """
def on(node):
    return build_definitions(pipeline("docs", node_id=node, storage_root=node))

defs = dg.Definitions.merge(on("a"), on("b"))
"""
Written = Callable[[str], str]


@pytest.fixture
def written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Written]:
    """Call it with a module's text for the module's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = f"shop_{abs(hash(request.node.nodeid))}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()

    def write(text: str) -> str:
        path = tmp_path / package / "definitions.py"
        path.write_text(BEGINNING + text)
        return f"{package}.definitions"

    yield write
    for name in [one for one in sys.modules if one.startswith(package)]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "text",
    [
        "defs = build_definitions(pipeline('docs'))",
        "anything = dg.Definitions.merge(dg.Definitions(), build_definitions(pipeline('docs')))",
        "defs = definitions = build_definitions(pipeline('docs'))",
        "defs = dg.Definitions(sensors=build_sensors(pipeline('docs')))",
        "defs = dg.Definitions(assets=build_assets(pipeline('docs')))",
        "@dg.definitions\ndef defs():\n    return build_definitions(pipeline('docs'))",
        "build_definitions(pipeline('left_out'))\ndefs = build_definitions(pipeline('docs'))",
    ],
)
def test_the_pipelines_of_the_definitions_are_found_and_no_others(
    written: Written, text: str
) -> None:
    found = pipelines_of_module(written(text))
    assert list(found) == ["docs"]
    assert found["docs"].source.describe().endswith("queue")


def test_of_several_definitions_one_is_named(written: Written) -> None:
    module = written(
        "one = build_definitions(pipeline('docs'))\ntwo = build_definitions(pipeline('images'))"
    )
    with pytest.raises(ConfigError, match=rf"choose {module}:one or {module}:two"):
        pipelines_of_module(module)
    assert list(pipelines_of_module(f"{module}:two")) == ["images"]


def test_several_pipelines_are_found_in_one(written: Written) -> None:
    module = written("defs = build_definitions(pipeline('docs'), pipeline('images'))")
    assert sorted(pipelines_of_module(module)) == ["docs", "images"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no Dagster definitions"),
        ("defs = dg.Definitions()", "have no pipeline in them"),
        ("build_definitions(pipeline('docs'))", "has no Dagster definitions"),
        ("raise RuntimeError('on purpose')", "RuntimeError: on purpose"),
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("pipeline('No Name')", "ValidationError"),
        ("@dg.definitions\ndef defs():\n    raise RuntimeError('late')", "failed: .*late"),
        ("import sys\nsys.exit(3)", "SystemExit"),
        (
            ON_TWO_NODES,
            "several pipelines of one name: docs on node a, docs on node b",
        ),
    ],
)
def test_a_module_that_does_not_do_is_a_sentence(written: Written, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pipelines_of_module(written(text))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package.definitions", "there is no module no_such_package"),
        ("json.no_such_module", "there is no module json.no_such_module"),
        ("json", "has no Dagster definitions"),
        ("json:no_such_name", "has no no_such_name"),
        ("shop/definitions.py", "not of the form"),
        ("..shop", "not of the form"),
        ("", "not of the form"),
        ("a:b:c", "not of the form"),
        ("sh op", "not of the form"),
    ],
)
def test_a_name_that_is_no_module_is_a_sentence(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pipelines_of_module(name)


def test_an_unfound_module_is_told_with_the_folder_it_was_looked_for_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ConfigError, match=str(tmp_path)):
        pipelines_of_module("no_such_package")
