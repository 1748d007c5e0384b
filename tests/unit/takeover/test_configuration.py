"""Coming from FUploader: every setting has its place, and a configuration is written."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import file_uploader
import pytest
import yaml
from typer.testing import CliRunner

import fuploader_dagster
from fuploader_dagster.cli import app
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.takeover import Takeover

GUIDE = Path(__file__).parents[3] / "docs" / "migrating-from-fuploader.md"
CONFIGURATION = """
storage_root: root
pipelines:
  docs:
    source: {kind: embedded, path: queue}
    state: {kind: sqlite, path: state.sqlite}
    store: {kind: local, path: objects}
"""
SECRETS = {
    "RABBITMQ_URL": "amqp://u:p@broker/",
    "REDIS_URL": "redis://redis/0",
    "COS_SECRET_ID": "id",
    "COS_SECRET_KEY": "key",
}


def rows(heading: str) -> dict[str, str]:
    """The first column of a section's table, each name of it, and the second one."""
    section = GUIDE.read_text("utf-8").split(f"### {heading}\n")[1].split("\n#")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `"):
            found.update(dict.fromkeys(re.findall(r"`([A-Za-z_]+)`", cells[0]), cells[1]))
    return found


def public_names() -> set[str]:
    names = set(file_uploader.__all__)
    for module in pkgutil.walk_packages(file_uploader.__path__, "file_uploader."):
        names |= set(getattr(importlib.import_module(module.name), "__all__", ()))
    return names


def arguments(owner: Any) -> set[str]:
    return set(inspect.signature(owner).parameters) - {"self"}


def variables() -> set[str]:
    """Names in capital letters in its module that reads the environment."""
    source = inspect.getsource(importlib.import_module("file_uploader.runtime"))
    return set(re.findall(r'"([A-Z][A-Z_]+)"', source))


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("FileWriterConfig", {f.name for f in dataclasses.fields(file_uploader.FileWriterConfig)}),
        ("Environment variables", variables()),
        ("RabbitMQSource", arguments(file_uploader.RabbitMQSource)),
        ("RedisStateStore", arguments(file_uploader.RedisStateStore)),
        ("OssUploader", arguments(file_uploader.OssUploader)),
        ("Names of the API", public_names()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_everything_of_fuploaders_has_its_place_in_the_guide(heading: str, names: set[str]) -> None:
    assert rows(heading).keys() == names


def test_what_the_guide_names_of_ours_exists() -> None:
    known = {*Pipeline.model_fields, *dir(fuploader_dagster), *Takeover.model_fields}
    said = {
        name
        for heading in ("FileWriterConfig", "Names of the API", "Environment variables")
        for place in rows(heading).values()
        for name in re.findall(r"`([A-Za-z_]+)`", place)
    }
    assert said <= known


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("META_WRITER_PROCESS_COUNT=0", ("process_count", 1)),
        ("META_WRITER_PROCESS_COUNT= 3 ", ("process_count", 3)),
        ("META_WRITER_MAX_TASKS_PER_CHILD=-1", ("max_tasks_per_child", 0)),
        ("META_WRITER_RABBITMQ_PREFETCH_COUNT=1", ("prefetch_count", 2)),
        ("RESIDUE_FILE_UPLOAD=on", ("residue_file_upload", True)),
    ],
)
def test_its_variables_work_with_every_value_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, expected: tuple[str, object]
) -> None:
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value)
    path = tmp_path / "fuploader.yaml"
    path.write_text(CONFIGURATION)
    assert getattr(load_pipelines(path)["docs"], expected[0]) == expected[1]


def migrate(*options: str, answers: str = "") -> str:
    done = CliRunner().invoke(app.app, ["migrate", *options], input=answers)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_migrate_asks_and_writes_a_configuration_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fuploader.yaml"
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    answers = "Douyin-Aweme\n/data/out\nqueue\n\nbucket-125\nap-guangzhou\n\n\n\n\n"
    said = migrate("--config", str(path), answers=answers)
    assert f"wrote {path}" in said.replace("\n", "")
    pipeline = load_pipelines(path)["douyin_aweme"]
    assert pipeline.takeover.task_name == "Douyin-Aweme"
    assert "bucket-125" in pipeline.store.describe()
    assert not any(secret in path.read_text() for secret in ("u:p", "redis://"))
    options = "--name t --storage-root /d --queue q --provider s3 --bucket b --endpoint h:9000"
    other = tmp_path / "other.yaml"
    migrate("--config", str(other), "--yes", *options.split())
    store = yaml.safe_load(other.read_text())["pipelines"]["t"]["store"]
    assert store["endpoint_url"] == "https://h:9000"
    before = other.read_text()
    with pytest.raises(Exception, match="cannot be written"):
        migrate("--config", str(other), "--yes", "--write-config", *options.split())
    assert other.read_text() == before


def test_migrate_shows_the_plan_and_then_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fuploader.yaml").write_text(CONFIGURATION)
    left = tmp_path / "root/slot_0_0/a.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    said = migrate("--dry-run")
    assert "1 file of 1 directory and 0 archives to take over" in said
    assert left.exists()
    assert "sealed 1 slot with 1 file" in migrate("--yes")
    assert not left.exists()
    assert "nothing of FUploader's is left" in migrate()


def test_migrate_writes_what_dagster_needs_and_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("# mine\n")
    options = "--name t --storage-root /d --queue q --provider s3 --bucket b --yes"
    migrate("--config", str(tmp_path / "fuploader.yaml"), *options.split())
    workspace = yaml.safe_load((tmp_path / "workspace.yaml").read_text())
    (location,) = workspace["load_from"]
    assert location["python_module"]["module_name"] == "fuploader_dagster.code_location"
    assert (tmp_path / "dagster.yaml").read_text() == "# mine\n"


def test_a_dry_run_writes_nothing_where_there_is_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no configuration file"):
        migrate("--dry-run", "--yes")
    assert not list(tmp_path.iterdir())


def test_dev_says_what_is_missing_where_dagster_would_find_nothing_to_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fuploader.yaml").write_text(CONFIGURATION)
    with pytest.raises(ConfigError, match=r"there is no workspace\.yaml in"):
        CliRunner().invoke(app.app, ["dev"], catch_exceptions=False)
