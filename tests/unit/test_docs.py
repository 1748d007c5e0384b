"""The documentation cannot go stale: its examples run, its commands and its links exist."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import dagster as dg
import pytest
import yaml

from fuploader_dagster.cli import app
from fuploader_dagster.settings.loading import load_pipelines
from tools import settings_reference

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text("utf-8")
PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
ROOTS = [REPOSITORY, REPOSITORY / "fuploader_dagster"]
"""From where pages name files."""
MAPS = ["architecture.md", "follow-one-message.md"]
OF_A_USER = {"strategies.py", "tests/test_strategies.py", "douyin.py"}
"""Files of a project that a page has its reader write."""
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


def test_the_page_on_sql_tables_has_a_configuration_that_loads_and_python_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "sql-source.md").read_text("utf-8")
    (configuration,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.setenv("MYSQL_URL", "mysql://somebody:a-secret@db/shop")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "project_of_the_page.py").write_text("def rows(item):\n    return None\n")
    configuration = configuration.replace("my_project", "project_of_the_page")
    (tmp_path / "fuploader.yaml").write_text(configuration)
    pipelines = load_pipelines(tmp_path / "fuploader.yaml")
    assert pipelines["entities"].source.describe() == "table source_data at mysql://db/shop"
    assert "a-secret" not in repr(pipelines)
    names: dict[str, object] = {}
    exec(compile(code, "sql-source.md", "exec", dont_inherit=True), names)
    assert isinstance(names["at_night"], dg.ScheduleDefinition)


def test_every_command_is_in_the_readme_and_every_command_there_exists() -> None:
    commands = {one.name for one in app.COMMANDS}
    assert set(re.findall(r"`fuploader ([a-z-]+)", README)) == commands


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", page.read_text("utf-8"))
    for path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_fragment_of_the_changelog_has_a_known_type_and_links_that_lead_somewhere() -> None:
    """towncrier passes over a file whose type it does not know."""
    project = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    types = set(re.findall(r'\{ directory = "(\w+)"', project))
    assert len(types) > 3
    for fragment in (REPOSITORY / "changelog.d").glob("[!.]*"):
        match = re.fullmatch(r"\+[\w-]+\.(\w+)\.md", fragment.name)
        assert match and match[1] in types, fragment.name
        for path in re.findall(r"\]\((?!https?://)([^)#]+)", fragment.read_text("utf-8")):
            assert (REPOSITORY / path).exists(), f"{fragment.name}: {path}"


def test_the_page_of_settings_is_what_the_models_say() -> None:
    written = settings_reference.PAGE.read_text("utf-8")
    assert written == settings_reference.page(), "run python -m tools.settings_reference"


def test_the_downstream_asset_of_the_page_on_host_projects_loads() -> None:
    page = (REPOSITORY / "docs" / "host-project.md").read_text("utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S)[1:]:
        exec(compile(block, "host-project.md", "exec", dont_inherit=True), names)
    assert isinstance(names["sizes"], dg.AssetsDefinition)


def module(name: str) -> Path | None:
    """The file that a page calls by this name."""
    return next((root / name for root in ROOTS if (root / name).is_file()), None)


def definitions_in(path: Path) -> set[str]:
    """Functions and classes by name, methods as `Class.method`."""
    found = set()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.ClassDef, *functions)):
            found.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{one.name}" for one in inner if isinstance(one, functions)}
    return found


def unknown_names(page: str) -> list[str]:
    """What a page names that is not there. A function stands as `function()` or `Class.method()`,
    a class as `Class`, in a list item, row or paragraph that also names its file.
    """
    wrong = []
    for block in re.split(r"\n\n|\n(?=\d+\. |- |\|)", page):
        files = re.findall(r"`([\w./]+\.py)`", block)
        wrong += [file for file in files if module(file) is None]
        defined = {
            name for file in files if (path := module(file)) for name in definitions_in(path)
        }
        names = re.findall(r"`([A-Za-z_.]+)\(\)`|`([A-Z][a-z]+[A-Z]\w+)`", block)
        wrong += [name for pair in names for name in pair if name and name not in defined]
    return wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`pack()` in `delivery/pack.py`", []),
        ("`unpack()` in `delivery/pack.py`", ["unpack"]),
        ("`pack()` in `delivery/packing.py`", ["delivery/packing.py", "pack"]),
        ("`SlotOwner.add()`, `SlotOwner.subtract()`: `slots/slot.py`", ["SlotOwner.subtract"]),
        ("`SlotOwner`: `slots/slot.py`", []),
        ("1. `slots/slot.py`\n2. `SlotOwner`", ["SlotOwner"]),
    ],
)
def test_a_function_that_does_not_exist_is_noticed(text: str, wrong: list[str]) -> None:
    assert unknown_names(text) == wrong


@pytest.mark.parametrize("name", MAPS)
def test_files_and_functions_on_the_maps_exist(name: str) -> None:
    page = (REPOSITORY / "docs" / name).read_text("utf-8")
    assert len(re.findall(r"`[\w./]+\.py`", page)) > 10
    assert unknown_names(page) == []


def test_every_folder_of_the_package_has_its_line_in_the_architecture() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")
    lines = set(re.findall(r"^\| `(?:fuploader_dagster/)?(\w*)/?` \|", page, re.M)) - {""}
    package = REPOSITORY / "fuploader_dagster"
    assert lines == {path.parent.name for path in package.glob("*/__init__.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_of_ours_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`([\w./]+\.py)(?:::\w+)?`", page.read_text("utf-8"))
    beside = [page.parent, *ROOTS]
    missing = [n for n in named if not any((folder / n).exists() for folder in beside)]
    assert set(missing) <= OF_A_USER


def test_tests_that_a_page_names_exist() -> None:
    for page in PAGES:
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text("utf-8")):
            assert test in definitions_in(REPOSITORY / file), f"{page.name}: {file}::{test}"


def test_a_commit_is_checked_by_what_make_check_runs() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    target = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert target
    made = [line.strip().replace("$(BIN)", ".venv/bin") for line in target[1].splitlines()]
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [hook["entry"] for hook in hooks["repos"][0]["hooks"]] == made


def test_the_page_on_compatibility_names_every_command_with_json() -> None:
    page = (REPOSITORY / "docs" / "compatibility.md").read_text("utf-8")
    (said,) = re.findall(r"what\s+`--json` prints:(.*?)\. ", page, re.S)
    commands = app.loaded_commands()
    for group in [name for name, one in commands.items() if hasattr(one, "commands")]:
        inner = commands.pop(group).commands
        commands |= {f"{group} {name}": one for name, one in inner.items()}
    with_json = {
        name
        for name, one in commands.items()
        if any("--json" in param.opts for param in one.params)
    }
    assert set(re.findall(r"`([a-z -]+)`", " ".join(said.split()))) == with_json
