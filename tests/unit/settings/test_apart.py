"""Pipelines of one configuration that would share a folder are refused when they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.loading import load_pipelines
from tests.settings import embedded_parts, pipeline

BACKENDS = embedded_parts()


def test_two_pipelines_with_one_folder_are_refused(tmp_path: Path) -> None:
    made = [pipeline(tmp_path, node_id=node) for node in ("one", "two")]
    with pytest.raises(ConfigError, match="pipelines docs and docs have the same folder"):
        build_definitions(*made)


def test_a_folder_that_is_reached_by_a_link_is_the_same_one(tmp_path: Path) -> None:
    (tmp_path / "root" / "docs").mkdir(parents=True)
    (tmp_path / "root" / "images").symlink_to("docs")
    path = tmp_path / "fuploader.yaml"
    content = {"storage_root": str(tmp_path / "root"), **BACKENDS}
    path.write_text(yaml.safe_dump({**content, "pipelines": {"docs": {}, "images": {}}}))
    with pytest.raises(ConfigError, match="pipelines docs and images have the same folder"):
        load_pipelines(path)
    (tmp_path / "root" / "images").unlink()
    assert set(load_pipelines(path)) == {"docs", "images"}


def test_fuploaders_data_in_a_shared_storage_root_does_not_stop_loading(tmp_path: Path) -> None:
    (tmp_path / "data" / "slot_0_3").mkdir(parents=True)
    build_definitions(*(pipeline(tmp_path, name=name) for name in ("docs", "images")))
