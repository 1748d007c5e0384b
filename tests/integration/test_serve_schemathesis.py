"""`fuploader serve` keeps to its OpenAPI document: what that allows is taken, the rest refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.ship import ship
from tests.deployment import PROGRAMS
from tests.serving import TOKEN, Server, serving
from tests.settings import sealed

FUNCTIONS = """
from fuploader_dagster import Result, processor

@processor(route="two")
def two(item): return [Result(item.content), Result(b"another")]

@processor
def one(item): return item.content[::-1]
"""
PROCESS = {"kind": "functions", "module": "app"}
SERVE = {"max_items": 50, "remember_ids": 0}  # else a key is refused with another body
KINDS: dict[str, dict[str, Any]] = {
    "flat JSON": {"serve": {**SERVE, "flat": True}},
    "any bytes": {"serve": SERVE, "message_format": "raw", "process": PROCESS},
}
RULES = """
[checks]
# A message that was published waits in the queue: nobody has seen it yet.
ensure_resource_availability.enabled = false
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 413, 422, 429]

[[operations]]
include-name = "POST /{pipeline}/process"
# No schema says that there is a body or an address, and that an address can be fetched.
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 422]

[[operations]]
include-path-regex = "messages/|files/"
parameters = { "path.id" = "a.json", "path.name" = "a.json" }
"""


@pytest.mark.parametrize("kind", KINDS)
def test_requests_made_from_the_document_are_answered_as_it_says(tmp_path: Path, kind: str) -> None:
    (tmp_path / "app.py").write_text(FUNCTIONS)
    with serving(tmp_path, **KINDS[kind]) as server:
        store(server, "a.json")
        done = schemathesis(server, tmp_path, "--seed", "23", "--max-examples", "25")
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        assert "unexpected" not in server.log.read_text()


def store(server: Server, name: str) -> None:
    """Store a file of this name, as the pipeline does."""
    pipeline = server.pipeline
    sealed(pipeline, {name: b"{}"})
    assert list(ship(pipeline, pipeline.store.open()))
    assert server.ask("GET", f"/docs/files/{name}").status_code == 200


def schemathesis(server: Server, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    rules = folder / "schemathesis.toml"
    rules.write_text(RULES)
    return subprocess.run(
        [
            *(str(PROGRAMS / "schemathesis"), "--config-file", str(rules), "--no-color", "run"),
            *(f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"),
            *("--generation-database", "none", "--continue-on-failure", *arguments),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
