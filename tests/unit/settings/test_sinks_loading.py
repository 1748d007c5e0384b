"""Sinks in a file, in Python and in a component: a name and a kind for each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuploader_dagster.contracts.processor import Item
from fuploader_dagster.contracts.sink import SinkSettings
from fuploader_dagster.delivery.item_rows import rows_of
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.archive_formats import SUFFIXES, ArchiveFormat
from fuploader_dagster.settings.loading import dump_intake, load_intake, load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from tests.lives import pack_by_hand
from tests.processors_for_tests import Script
from tests.settings import embedded_parts, pipeline
from tests.sinks_for_tests import RowsFile, two_rows

OURS = {"kind": "tests.sinks_for_tests:RowsFile", "path": "rows.sqlite"}


def loaded(folder: Path, sinks: Any, **values: Any) -> Pipeline:
    file = folder / "fuploader.yaml"
    one = {**embedded_parts(folder), "sinks": sinks, **values}
    file.write_text(yaml.safe_dump({"storage_root": str(folder), "pipelines": {"docs": one}}))
    return load_pipelines(file)["docs"]


def test_a_kind_is_a_short_name_or_a_class_of_ones_own(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        {
            "rows": {**OURS, "rows": "tests.sinks_for_tests:two_rows"},
            "table": {"kind": "sql", "url": "sqlite:////tmp/x.db", "table": "t", "columns": ["a"]},
        },
    )
    assert list(settings.sinks) == ["rows", "table"]
    assert settings.sinks["rows"] == RowsFile(path=tmp_path / "rows.sqlite", rows=two_rows)
    assert settings.sinks["table"].columns == ["a"]
    assert settings.sinks["table"].partitions_per_run == 100


@pytest.mark.parametrize(
    ("sinks", "said"),
    [
        ([OURS], "sinks must be a mapping"),
        ({"rows": {}}, "pipelines.docs.sinks.rows must be a mapping with a `kind`"),
        ({"rows": {"kind": "sq"}}, "sinks.rows.kind"),
        ({"rows": {"kind": "sqlite"}}, "sinks.rows.kind"),
        ({"rows": {"kind": "tests.settings:pipeline"}}, "does not implement SinkSettings"),
        ({"rows": {**OURS, "requred": True}}, "did you mean required"),
        ({"Rows": OURS}, "sinks"),
        ({"a-b": OURS}, "sinks"),
        ({"x" * 33: OURS}, "sinks"),
        ({True: OURS}, "whose name is a bool"),
        ({"rows": {**OURS, "columns": ["a"], "rows": "tests.sinks_for_tests:two_rows"}}, "columns"),
        ({"rows": {**OURS, "partitions_per_run": 0}}, "partitions_per_run"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(sinks: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as wrong:
        loaded(tmp_path, sinks)
    assert said in str(wrong.value)


def test_the_examples_of_the_page_on_sinks_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "sinks.md").read_text("utf-8")
    (python,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_project.py").write_text(python)
    schemes = {"DATABASE": "postgresql", "MYSQL": "mysql", "RABBITMQ": "amqp", "REDIS": "redis"}
    schemes["CLICKHOUSE"] = "https"
    for name, scheme in schemes.items():
        path = "0" if name == "REDIS" else "name"
        monkeypatch.setenv(f"{name}_URL", f"{scheme}://user:password@host/{path}")
    file = tmp_path / "fuploader.yaml"
    sinks: dict[str, SinkSettings] = {}
    described = []
    for example in re.findall(r"```yaml\n(.*?)```", page, re.S):
        file.write_text(example)
        (settings,) = load_pipelines(file).values()
        described += [sink.describe() for sink in settings.sinks.values()]
        sinks |= settings.sinks
    made = rows_of(sinks["results"])(Item("a", b'{"doc_id": 7, "ent_list": ["x", "y"]}'))
    assert made == [{"doc_id": 7, "ent_list_str": "x,y"}]
    assert described == [
        "table my_table at postgresql://host/name",
        "table doc_ent_map at mysql://host/name",
        "table my_table at https://host",
    ]


def test_workers_see_no_sinks(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"rows": OURS})
    line = dump_intake(settings.intake())
    assert b'"sinks"' not in line
    assert not hasattr(load_intake(line), "sinks")


def test_archives_that_nobody_can_read_back_need_sinks_that_slots_wait_for(tmp_path: Path) -> None:
    packed = {"packer": pack_by_hand, "archive_suffix": ".zip"}
    with pytest.raises(ValueError, match="only your packer knows its form"):
        pipeline(tmp_path, sinks={"late": RowsFile(path=tmp_path / "rows.sqlite")}, **packed)
    columns = {"archive_format": "parquet", "parquet_content": False}
    with pytest.raises(ValueError, match="only columns"):
        pipeline(tmp_path, sinks={"late": RowsFile(path=tmp_path / "rows.sqlite")}, **columns)
    required = {"rows": RowsFile(path=tmp_path / "rows.sqlite", required=True)}
    assert pipeline(tmp_path, sinks=required, **packed).sinks
    assert pipeline(tmp_path, sinks=required, **columns).sinks


@pytest.mark.parametrize("archive_format", SUFFIXES)
def test_rows_can_be_made_later_of_every_format_that_has_the_files(
    archive_format: ArchiveFormat, tmp_path: Path
) -> None:
    late = {"late": RowsFile(path=tmp_path / "rows.sqlite")}
    assert pipeline(tmp_path, sinks=late, archive_format=archive_format).sinks


def test_rows_of_results_need_archives_that_hold_results(tmp_path: Path) -> None:
    late = RowsFile(path=tmp_path / "rows.sqlite")
    with pytest.raises(ValueError, match="required: true"):
        pipeline(tmp_path, sinks={"late": late}, process=Script(keep="originals"))
    for keep, required in (("both", False), ("results", False), ("originals", True)):
        sink = RowsFile(path=tmp_path / "rows.sqlite", required=required)
        assert pipeline(tmp_path, sinks={"rows": sink}, process=Script(keep=keep)).sinks


def test_sinks_whose_redo_would_delete_each_others_rows_are_refused(tmp_path: Path) -> None:
    def sql(database: str = "rows.sqlite", **values: Any) -> dict[str, Any]:
        url = f"sqlite:///{tmp_path / database}"
        return {"kind": "sql", "url": url, "table": "t", "slot_column": "slot", **values}

    with pytest.raises(ConfigError, match=r"a and c both fill table t .*, slot_column slot"):
        loaded(tmp_path, {"a": sql(), "b": sql(slot_column="other"), "c": sql(columns=["x"])})
    apart = {
        "a": sql(),
        "b": sql(slot_column="other"),
        "c": sql(table="u"),
        "d": sql("other.sqlite"),
        "e": sql(slot_column=None),
        "f": sql(slot_column=None),
    }
    assert list(loaded(tmp_path, apart).sinks) == list(apart)
