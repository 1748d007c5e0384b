"""What docs/first-ten-minutes.md tells a new user to write does what the page says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuploader_dagster.cli.init import write_project
from tests.integration.test_cli import FUPLOADER, fuploader, status, until
from tests.settings import archived_files

PAGE = (Path(__file__).parents[2] / "docs" / "first-ten-minutes.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def block(language: str) -> str:
    (only,) = blocks(language)
    return only


def test_the_pages_parser_runs_and_what_it_could_not_read_comes_again(tmp_path: Path) -> None:
    project = tmp_path / "orders"
    write_project(project)
    strategies, tests = blocks("python")
    (project / "strategies.py").write_text(strategies)
    (project / "tests" / "test_strategies.py").write_text(tests)
    (project / "fuploader.yaml").write_text(block("yaml"))
    (project / "orders.jsonl").write_text(block("json"))
    tested = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly"]
    answer = subprocess.run(tested, cwd=project, capture_output=True, text=True, check=False)
    assert "1 passed" in answer.stdout, answer.stdout
    for command in ("lint", "doctor", "publish orders.jsonl"):
        answer = fuploader(project, *command.split())
        assert answer.returncode == 0, answer.stderr
    drain_until(project, lambda found: found["stored_messages"] + found["dead_letters"] == 3)
    assert "KeyError: 'id'" in fuploader(project, "dead-letters", "list").stdout
    mended = strategies.replace('order["id"]', 'order.get("id") or order["number"]', 1)
    mended = mended.replace('order["lines"]', 'order.get("lines", [])')
    (project / "strategies.py").write_text(mended)
    assert fuploader(project, "dead-letters", "requeue", "--all").returncode == 0
    drain_until(project, lambda found: found["stored_messages"] == 3)
    for command in ("seal", "ship"):
        assert fuploader(project, command).returncode == 0
    found = {
        name: json.loads(content)
        for name, (content,) in archived_files(project / "data" / "object-store").items()
    }
    assert found == {
        "o-1.json": {"id": "o-1", "total": 5},
        "o-2.json": {"id": "o-2", "total": 0},
        "3.json": {"id": 3, "total": 0},
    }
    _, _, partition, _ = fuploader(project, "find", "o-1.json").stdout.split()
    assert fuploader(project, "cat", partition, "o-1.json").stdout == '{"id": "o-1", "total": 5}'


def drain_until(project: Path, met: Callable[[dict[str, Any]], bool]) -> None:
    """Workers, until the status says so."""
    with subprocess.Popen(
        [str(FUPLOADER), "drain"], cwd=project, stderr=subprocess.DEVNULL
    ) as drain:
        until(lambda: met(status(project)))
        drain.send_signal(signal.SIGTERM)
        assert drain.wait(60) == 0
