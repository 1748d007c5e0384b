"""What FUploader left goes to one pipeline: where it could be several, `migrate` refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fuploader_dagster.cli import app
from fuploader_dagster.errors import ConfigError
from tests.settings import embedded_parts

FLAT = "root/slot_0_3/a.json"
LEGACY = "root/sealed/slot-0/dir-000001/a.json"
ARCHIVE = "root/20261120_101112_131415_0a1b2c3d.tar.zst"
OFF = {"enabled": False}


def plan_of_docs(folder: Path, pipelines: dict[str, dict[str, Any]]) -> str:
    """What `migrate --dry-run` says for the pipeline `docs`; raises what it refuses with."""
    parts = embedded_parts(folder)
    content = {"pipelines": {name: {**parts, **own} for name, own in pipelines.items()}}
    path = folder / "fuploader.yaml"
    path.write_text(yaml.safe_dump({"storage_root": str(folder / "root"), **content}))
    arguments = ["migrate", "--dry-run", "--pipeline", "docs", "--config", str(path)]
    return CliRunner().invoke(app.app, arguments, catch_exceptions=False).output


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
        plan_of_docs(tmp_path, {"docs": {}, "images": {}})
    assert str(tmp_path / "root") in str(caught.value)
    assert "takeover: {enabled: false}" in str(caught.value)
    assert "takeover.root" in str(caught.value)


@pytest.mark.parametrize(
    ("left", "pipelines", "files"),
    [
        ([], {"docs": {}, "images": {}}, 0),
        (["root/slot_0_3", "root/mine/a.json", "root/x.tar.zst"], {"docs": {}, "images": {}}, 0),
        (["root/docs/sealed/slot-0/dir-000001/seal.json"], {"docs": {}, "images": {}}, 0),
        ([FLAT, LEGACY], {"docs": {}}, 1),
        ([FLAT, LEGACY], {"docs": {}, "images": {"takeover": OFF}}, 1),
        ([FLAT], {"docs": {}, "images": {"takeover": {"root": "elsewhere"}}}, 1),
        ([FLAT], {"docs": {}, "images": {"storage_root": "elsewhere"}}, 1),
    ],
)
def test_where_it_is_clear_whose_it_is_the_plan_is_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: list[str],
    pipelines: dict[str, dict[str, Any]],
    files: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    leave(tmp_path, *left)
    said = plan_of_docs(tmp_path, pipelines)
    assert ("1 file of" if files else "nothing of FUploader's is left") in said


def test_a_folder_that_is_reached_by_two_names_is_one(tmp_path: Path) -> None:
    leave(tmp_path, FLAT)
    (tmp_path / "link").symlink_to("root")
    elsewhere = {"takeover": {"root": str(tmp_path / "link")}}
    with pytest.raises(ConfigError, match="docs and images would all take over"):
        plan_of_docs(tmp_path, {"docs": {}, "images": elsewhere})


@pytest.mark.parametrize(
    ("name", "left", "refused"),
    [
        ("slot_0_1", [], True),
        ("active", [LEGACY], True),
        ("active", [], True),
        ("slot_0", [LEGACY], False),
    ],
)
def test_a_pipelines_folder_is_never_taken_for_one_of_fuploader(
    tmp_path: Path, name: str, left: list[str], refused: bool
) -> None:
    leave(tmp_path, *left)
    pipelines = {"docs": {}, name: {"takeover": OFF}}
    if not refused:
        plan_of_docs(tmp_path, pipelines)
        return
    with pytest.raises(ConfigError, match=f"{name}, a name that FUploader uses"):
        plan_of_docs(tmp_path, pipelines)
