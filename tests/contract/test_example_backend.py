"""The backend that docs/adding-a-backend.md shows keeps the contract and works in a pipeline."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import fuploader_dagster
from fuploader_dagster import build_definitions, build_jobs, build_schedules, build_sensors
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.settings.loading import load_pipeline
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.testing import ObjectStoreContract, OpenStore
from tests.settings import pipeline, sealed

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-backend.md"
BACKEND, TESTS, OBJECTS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


@pytest.fixture(scope="module")
def store_class(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page's class, from a package of the name that the page uses."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_project").mkdir()
    (folder / "my_project" / "stores.py").write_text(BACKEND, "utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield import_module("my_project.stores").SQLiteStore
    finally:
        sys.path.remove(str(folder))
        for name in ("my_project.stores", "my_project"):
            sys.modules.pop(name, None)


class TestExample(ObjectStoreContract):
    @pytest.fixture
    def open_store(self, store_class: Any, tmp_path: Path) -> OpenStore:
        return lambda: store_class(path=str(tmp_path / "db"), retry_budget_seconds=0).open()  # type: ignore[no-any-return]


def test_it_is_short_and_its_tests_are_written_as_these_are(store_class: Any) -> None:
    lines = [line for line in BACKEND.splitlines() if line.strip()]
    assert len(lines) < 75
    body = BACKEND[BACKEND.index("class SQLiteStore") :].splitlines()
    assert len([line for line in body if line.strip()]) < 60
    names: dict[str, Any] = {}
    exec(TESTS, names)
    assert issubclass(names["TestSQLiteStore"], ObjectStoreContract)


def test_a_pipeline_of_yaml_stores_into_it(store_class: Any, tmp_path: Path) -> None:
    values = {
        "name": "docs",
        "storage_root": str(tmp_path / "data"),
        "source": {"kind": "embedded", "path": str(tmp_path / "queue")},
        "state": {"kind": "sqlite", "path": str(tmp_path / "state")},
        "store": {"kind": "my_project.stores:SQLiteStore", "path": str(tmp_path / "db")},
    }
    settings: Pipeline = load_pipeline(values, where="here")
    sealed(settings, {"a.json": b"a"})
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done)
    assert outcome.receipt is not None
    assert outcome.receipt.address.startswith(f"sqlite://{tmp_path}/db#docs/")
    assert [one.sha256 for one in [settings.store.open().head(outcome.receipt.key)] if one] == [
        outcome.receipt.sha256
    ]


def test_the_pages_definitions_leave_one_out_and_have_one_of_their_own(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(OBJECTS, str(PAGE), "exec", dont_inherit=True), names)
    settings = pipeline(tmp_path)
    whole = build_definitions(settings).get_repository_def()
    composed = names["definitions"](settings).get_repository_def()
    assert composed.get_sensor_def("docs_drain").default_status == dg.DefaultSensorStatus.STOPPED
    for mine, theirs in (
        (composed.sensor_defs, whole.sensor_defs),
        (composed.schedule_defs, whole.schedule_defs),
    ):
        assert {one.name for one in mine} == {one.name for one in theirs}
    jobs, all_jobs = ({job.name for job in one.get_all_jobs()} for one in (composed, whole))
    assert all_jobs - jobs == {"docs_replay"}
    assert composed.asset_graph.asset_check_keys == whole.asset_graph.asset_check_keys
    assert composed.asset_graph.get_all_asset_keys() == whole.asset_graph.get_all_asset_keys()
    assert composed.get_top_level_resources().keys() == whole.get_top_level_resources().keys()


def test_each_function_that_the_page_names_builds_one_of_the_definitions(tmp_path: Path) -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    functions = set(re.findall(r"`(build_[a-z_]+)`", "".join(rows)))
    settings = pipeline(
        tmp_path,
        runs_by="automation",
        alert_webhook="http://127.0.0.1:9/",
        scrub_archives=1,
    )
    definitions = [
        *build_jobs(settings),
        *build_sensors(settings),
        *build_schedules(settings),
    ]
    built = {getattr(fuploader_dagster, function)(settings).name for function in functions}
    assert built == {one.name for one in definitions}
    assert len(functions) == len(definitions)
