"""Commands load neither Dagster nor clients they do not need: loading takes longer than they do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fuploader_dagster.settings.loading import load_pipelines
from tests.integration.test_cli import configure
from tests.settings import sealed

PROGRAM = """
import sys
from fuploader_dagster.cli import app

for line in sys.stdin.read().splitlines():
    command = line.split()
    try:
        app.app(command, standalone_mode=False)
    except Exception as error:
        sys.exit(f"{line}: {type(error).__name__}: {error}")
    heavy = {"dagster", "boto3", "qcloud_cos", "oss2", "pika", "redis"}
    loaded = sorted(heavy & sys.modules.keys())
    if loaded:
        sys.exit(f"{line} loads {loaded}")
"""


@pytest.mark.parametrize("kind", ["local", "mirror"])
def test_no_command_of_a_pipeline_in_files_loads_dagster_or_a_client(
    tmp_path: Path, kind: str
) -> None:
    first = {"kind": "local", "path": "objects"}
    second = {"kind": "local", "path": "second"}
    mirror = {"kind": "mirror", "first": first, "second": second}
    configure(tmp_path, store=first if kind == "local" else mirror)
    (settings,) = load_pipelines(tmp_path / "fuploader.yaml").values()
    (tmp_path / "lines.jsonl").write_text('{"file_name": "b.json", "payload": {}}\n')
    slot = sealed(
        settings.model_copy(update={"storage_root": tmp_path / "data"}), {"a.json": b"alpha"}
    )
    key = slot.seal.partition
    commands = [
        "publish lines.jsonl",
        "seal",
        "status --json",
        "dead-letters list",
        "ship",
        "find a.json",
        "catalog rebuild",
        f"ls {key}",
        f"cat {key} a.json",
        f"verify {key}",
        f"restore {key} restored",
        f"replay {key}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(commands),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "alpha" in done.stdout
    assert (tmp_path / "restored" / "a.json").read_bytes() == b"alpha"


def test_what_the_command_line_and_the_workers_import_is_free_of_dagster() -> None:
    """`ship` runs without it; `dev`, which is Dagster, starts it as a process."""
    program = (
        "import sys; import fuploader_dagster.cli.app, fuploader_dagster.intake.worker; "
        "print('dagster' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert said.stdout.strip() == "False"
