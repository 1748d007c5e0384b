"""The backends that docs/adding-a-backend.md shows keep their contracts and work in a pipeline."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import fuploader_dagster
from fuploader_dagster import (
    Shipped,
    build_definitions,
    build_jobs,
    build_schedules,
    build_sensors,
    encode_file_message,
    run_pipeline,
)
from fuploader_dagster.contracts.source import CommittedBatch
from fuploader_dagster.settings.loading import load_pipeline
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import receipts_between
from fuploader_dagster.testing import MessageSourceContract, ObjectStoreContract, OpenStore
from tests.settings import pipeline

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-backend.md"
BACKEND, TESTS, SOURCE, OBJECTS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's classes are in a package of the name that the page uses."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_project").mkdir()
    (folder / "my_project" / "stores.py").write_text(BACKEND, "utf-8")
    (folder / "my_project" / "sources.py").write_text(SOURCE, "utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in ("my_project.stores", "my_project.sources", "my_project"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def store_class(user_folder: None) -> Any:
    return import_module("my_project.stores").SQLiteStore


@pytest.fixture(scope="module")
def source_class(user_folder: None) -> Any:
    return import_module("my_project.sources").Spool


class TestSource(MessageSourceContract):
    @pytest.fixture
    def settings(self, source_class: Any, tmp_path: Path) -> Any:
        return source_class(path=tmp_path / "spool")


def test_what_somebody_else_puts_into_the_spool_is_delivered_as_damaged(
    source_class: Any, tmp_path: Path
) -> None:
    settings = source_class(path=tmp_path)
    for number, content in enumerate((b"", b"[]\nbody", b"\xff" * 99)):
        (tmp_path / f"{number}").write_bytes(content)
        with closing(settings.source(prefetch=10)) as source:
            source.open()
            (message,) = source.receive(10, 5)
            assert message.damage
            assert message.body == content
            assert source.describe(message) == {}
            source.settle(CommittedBatch(last=message, messages=1))


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


def test_a_pipeline_of_yaml_drains_and_stores_with_them(
    store_class: Any, source_class: Any, tmp_path: Path
) -> None:
    values = {
        "name": "docs",
        "storage_root": str(tmp_path / "data"),
        "source": {"kind": "my_project.sources:Spool", "path": str(tmp_path / "spool")},
        "state": {"kind": "sqlite", "path": str(tmp_path / "state")},
        "store": {"kind": "my_project.stores:SQLiteStore", "path": str(tmp_path / "db")},
    }
    settings: Pipeline = load_pipeline(values, where="here")
    message = encode_file_message({"file_name": "a.json", "payload": {"a": 1}})
    with closing(settings.source.publisher()) as publisher:
        assert publisher.publish([(json.dumps(message).encode(), {})] * 3) == 3
    assert run_pipeline(settings, until_empty=True) == Shipped(archives=1, messages=1)
    (receipt,) = receipts_between(settings.layout).values()
    assert receipt.address.startswith(f"sqlite://{tmp_path}/db#docs/")
    there = settings.store.open().head(receipt.key)
    assert there is not None
    assert there.sha256 == receipt.sha256
    assert list((tmp_path / "spool").iterdir()) == []


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
