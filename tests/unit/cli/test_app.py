"""The command line as a whole: what it lists, what starting it costs, what it says of mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import fuploader_dagster
from fuploader_dagster.cli import app
from fuploader_dagster.cli.init import write_project

FUPLOADER = Path(sys.executable).with_name("fuploader")
HEAVY = {
    *("dagster", "sqlalchemy", "pydantic_settings", "asyncio", "aiohttp", "yarl", "requests"),
    *("pika", "redis", "boto3", "botocore", "qcloud_cos", "oss2", "confluent_kafka", "pyarrow"),
    *("psycopg", "pymysql", "clickhouse_connect", "grpc"),
}
"""None of them is needed for a queue, a state and a store on this machine."""
MORE = {"pydantic", "yaml", "msgspec", "zstandard", "isal", "sqlite3", "tenacity"}
"""Nor these to say what there is."""
PROGRAM = """
import sys
from fuploader_dagster.cli.app import main
try:
    main()
except SystemExit as end:
    print("exit", end.code or 0, file=sys.stderr)
print("imported", *sys.modules, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    assert len(write_project(folder)) > 3
    return folder


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FUPLOADER), *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], HEAVY | MORE),
        (["--version"], HEAVY | MORE),
        (["init", "--help"], HEAVY),
        (["status", "--help"], HEAVY),
        (["status"], HEAVY | {"tenacity"}),
        (["status", "--json"], HEAVY | {"tenacity"}),
        (["doctor"], HEAVY),
        (["dead-letters", "list"], HEAVY - {"asyncio"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_only_what_it_needs(
    project: Path, arguments: list[str], forbidden: set[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "exit 0" in done.stderr, done.stderr
    imported = done.stderr.rpartition("imported ")[2].split()
    assert {name.partition(".")[0] for name in imported} & forbidden == set()
    assert "fuploader_dagster.cli.app" in imported


def test_help_lists_every_command_with_its_own_first_sentence() -> None:
    """The table in `app` is what the commands' own modules say, and `--help` shows all of it."""
    commands = app.loaded_commands()
    assert len(commands) == len(app.COMMANDS) > 20
    shown = CliRunner().invoke(app.app, ["--help"], terminal_width=400)
    assert shown.exit_code == 0
    said = " ".join(shown.stdout.replace("│", " ").split())
    for one in app.COMMANDS:
        own = " ".join(commands[one.name].help.split("\n\n")[0].split())
        assert own == one.help, one.name
        assert f" {one.name} {one.help}" in said
        assert one.panel in said


def test_every_command_that_a_module_has_is_in_the_table() -> None:
    folder = Path(app.__file__).parent
    not_commands = {"__init__", "app", "console", "exit_codes", "words"}
    modules = {path.stem for path in folder.glob("*.py")} - not_commands
    assert {one.module for one in app.COMMANDS} == modules


def test_the_version_is_that_of_the_package(project: Path) -> None:
    installed = version("fuploader-dagster")
    assert run(project, "--version").stdout == f"fuploader {installed}\n"
    assert fuploader_dagster.__version__ == installed  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [[], ["status"], ["dead-letters"], ["dead-letters", "list"]])
def test_h_is_help(project: Path, command: list[str]) -> None:
    short, long = run(project, *command, "-h"), run(project, *command, "--help")
    assert short.returncode == 0
    assert short.stdout == long.stdout
    assert "--help" in short.stdout


def test_a_shell_completes_commands_and_options(project: Path) -> None:
    told = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # or it asks who started us
    shown = run(project, "--show-completion", "bash", **told)
    assert "complete -o default -F _fuploader_completion fuploader" in shown.stdout

    def completed(words: str) -> list[str]:
        count = str(len(words.split(" ")) - 1)
        asked = {"_FUPLOADER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
        return run(project, **asked).stdout.split()

    assert completed("fuploader dea") == ["dead-letters"]
    assert completed("fuploader dead-letters e") == ["export"]
    assert completed("fuploader status --js") == ["--json"]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["statsu"], "Did you mean 'status'"),
        (["dead-letters", "exprot"], "Did you mean 'export'"),
        (["status", "--jsno"], "--json"),
    ],
)
def test_a_mistyped_command_or_option_is_told_what_was_meant(
    project: Path, arguments: list[str], meant: str
) -> None:
    done = run(project, *arguments)
    assert done.returncode == 2
    assert meant in done.stderr


def test_typer_still_has_what_the_lazy_group_builds_on() -> None:
    group = typer.main.get_group(app.app)
    assert type(group).resolve_command is not typer.core.TyperGroup.resolve_command
    assert list(group.commands) == [one.name for one in app.COMMANDS]
