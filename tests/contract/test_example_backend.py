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

from fuploader_dagster.delivery.ship import Done, ship
from fuploader_dagster.settings.loading import load_pipeline
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.testing import ObjectStoreContract, OpenStore
from tests.settings import pipeline, sealed

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-backend.md"
BACKEND, TESTS, PARTS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


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


def test_the_pages_parts_give_definitions(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(PARTS, str(PAGE), "exec", dont_inherit=True), names)
    definitions = names["definitions"](pipeline(tmp_path))
    sensor = definitions.get_repository_def().get_sensor_def("docs_drain")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
