"""What FUploader left goes to one pipeline: where it could be several, loading is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.loading import load_pipelines
from tests.settings import pipeline

FLAT = "root/slot_0_3/a.json"
LEGACY = "root/sealed/slot-0/dir-000001/a.json"
ARCHIVE = "root/20261120_101112_131415_0a1b2c3d.tar.zst"
OFF = {"enabled": False}


def load(folder: Path, pipelines: dict[str, dict[str, Any]]) -> None:
    """Load it as a file and as Python: both refuse the same, or neither."""
    root = folder / "root"
    parts = {
        "source": {"kind": "embedded", "path": str(folder / "queue")},
        "state": {"kind": "sqlite", "path": str(folder / "state.sqlite")},
        "store": {"kind": "local", "path": str(folder / "objects")},
    }
    content = {"pipelines": {name: {**parts, **own} for name, own in pipelines.items()}}
    path = folder / "fuploader.yaml"
    path.write_text(yaml.safe_dump({"storage_root": str(root), **content}))
    complaints = []
    try:
        load_pipelines(path)
    except ConfigError as error:
        complaints.append(str(error))
    made = [
        pipeline(folder, **{"name": name, "storage_root": root, **own})
        for name, own in pipelines.items()
    ]
    try:
        build_definitions(*made)
    except ConfigError as error:
        complaints.append(str(error))
    if complaints:
        assert complaints == [complaints[0]] * 2
        raise ConfigError(complaints[0])


def leave(folder: Path, *paths: str) -> None:
    for path in (folder / path for path in paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a")


@pytest.mark.parametrize("left", [FLAT, LEGACY, ARCHIVE])
def test_two_pipelines_that_would_take_over_the_same_are_refused_with_what_to_set(
    tmp_path: Path, left: str
) -> None:
    leave(tmp_path, left)
    with pytest.raises(ConfigError, match="docs and images would all take over") as caught:
        load(tmp_path, {"docs": {}, "images": {}})
    assert str(tmp_path / "root") in str(caught.value)
    assert "takeover: {enabled: false}" in str(caught.value)
    assert "takeover.root" in str(caught.value)


@pytest.mark.parametrize(
    ("left", "pipelines"),
    [
        ([], {"docs": {}, "images": {}}),
        (["root/slot_0_3", "root/mine/a.json", "root/x.tar.zst"], {"docs": {}, "images": {}}),
        (["root/docs/sealed/slot-0/dir-000001/seal.json"], {"docs": {}, "images": {}}),
        ([FLAT, LEGACY, ARCHIVE], {"docs": {}}),
        ([FLAT, LEGACY, ARCHIVE], {"docs": {}, "images": {"takeover": OFF}}),
        ([FLAT, LEGACY, ARCHIVE], {"docs": {"takeover": OFF}, "images": {"takeover": OFF}}),
        ([FLAT], {"docs": {}, "images": {"takeover": {"root": "elsewhere"}}}),
        ([FLAT], {"docs": {}, "images": {"storage_root": "elsewhere"}}),
    ],
)
def test_where_it_is_clear_whose_it_is_everything_loads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: list[str],
    pipelines: dict[str, dict[str, Any]],
) -> None:
    monkeypatch.chdir(tmp_path)
    leave(tmp_path, *left)
    load(tmp_path, pipelines)


def test_a_folder_that_is_reached_by_two_names_is_one(tmp_path: Path) -> None:
    leave(tmp_path, FLAT)
    (tmp_path / "link").symlink_to("root")
    with pytest.raises(ConfigError, match="docs and images would all take over"):
        load(tmp_path, {"docs": {}, "images": {"takeover": {"root": str(tmp_path / "link")}}})


@pytest.mark.parametrize(
    ("name", "left", "refused"),
    [
        ("slot_0_1", [], True),
        ("active", [LEGACY], True),
        ("active", [], False),
        ("slot_0", [LEGACY], False),
    ],
)
def test_a_pipelines_folder_is_never_taken_for_one_of_fuploader(
    tmp_path: Path, name: str, left: list[str], refused: bool
) -> None:
    leave(tmp_path, *left)
    pipelines = {"docs": {}, name: {"takeover": OFF}}
    if not refused:
        load(tmp_path, pipelines)
        return
    with pytest.raises(ConfigError, match=f"{name}, a name that FUploader uses"):
        load(tmp_path, pipelines)
