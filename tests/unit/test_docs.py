"""The documentation cannot go stale: its examples run, its commands and its links exist."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import dagster as dg
import pytest
import typer
import yaml

from fuploader_dagster.cli import app
from fuploader_dagster.settings.loading import load_pipelines
from tools import settings_reference

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text("utf-8")
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "SECURITY.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
VARIABLES = {
    "RABBITMQ_URL": "amqp://somebody:a-secret@broker/",
    "REDIS_URL": "redis://:a-secret@redis/0",
    "AWS_ACCESS_KEY_ID": "an-id",
    "AWS_SECRET_ACCESS_KEY": "a-secret",
}


def blocks(language: str) -> list[str]:
    """Fenced blocks of the README in a language."""
    return [textwrap.dedent(b) for b in re.findall(rf"```{language}\n(.*?)```", README, re.S)]


def test_the_readmes_configuration_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    (block,) = blocks("yaml")
    path = tmp_path / "fuploader.yaml"
    path.write_text(block)
    pipelines = load_pipelines(path)
    assert pipelines.keys() == yaml.safe_load(block)["pipelines"].keys()
    assert "a-secret" not in repr(pipelines)


def test_the_readmes_python_gives_definitions() -> None:
    (block,) = blocks("python")
    names: dict[str, object] = {}
    exec(block, names)
    definitions = names["documents"]
    assert isinstance(definitions, dg.Definitions)
    assert definitions.get_sensor_def("documents_drain")


def test_the_repositorys_configuration_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert list(load_pipelines()) == ["documents"]


def test_every_command_is_in_the_readme_and_every_command_there_exists() -> None:
    commands = set(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"`fuploader ([a-z-]+)", README)) == commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_page_of_settings_is_what_the_models_say() -> None:
    written = settings_reference.PAGE.read_text("utf-8")
    assert written == settings_reference.page(), "run python -m tools.settings_reference"


def test_the_downstream_asset_of_the_page_on_host_projects_loads() -> None:
    page = (REPOSITORY / "docs" / "host-project.md").read_text("utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S)[1:]:
        exec(compile(block, "host-project.md", "exec", dont_inherit=True), names)
    assert isinstance(names["sizes"], dg.AssetsDefinition)
