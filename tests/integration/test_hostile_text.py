"""Names, reasons and folders of anybody's choice reach no terminal and no log as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from fuploader_dagster.catalog.catalog import Catalog, CatalogedArchive
from fuploader_dagster.cli import app
from fuploader_dagster.dead_letters.counts import read_counts
from fuploader_dagster.delivery.failures import note_failure
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import StateUnavailable
from fuploader_dagster.intake.worker_status import StatusReport
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.slots.receipts import receipts_between
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.drains import publish_bodies
from tests.integration.test_cli import FUPLOADER
from tests.servers.ports import wait_until
from tests.settings import embedded_parts, intake

FORGED = "2026-11-26 15:00:00,000 ERROR worker 1 fuploader_dagster.intake.drain: all data lost"
HOSTILE = f"x\x1b[2J\x1b]0;pwned\x07\x9b31m\u202e\u2028[bold]\r\n{FORGED}"
NAME = "fine\u202egnp\u2028[bold].exe"
"""What a file can be called: names with control characters become dead letters."""
FOLDER = "d\x1b[2J\u202e[bold]\n" + FORGED.replace("/", "")
PARSER = """
import json

def parse(body):
    value = json.loads(body)
    if "bad" in value:
        raise ValueError(f"unknown id {value['bad']}")
    return value
"""


def problems_of(output: bytes) -> list[str]:
    """What is wrong with what a person would see."""
    text = output.decode("utf-8")
    found = [repr(c) for c in "\x1b\x07\r\u202e\u2028" if c in text]
    found += [repr(c) for c in text if "\x80" <= c <= "\x9f"]
    found += [line for line in text.splitlines() if line.startswith(FORGED[:30])]
    found += re.findall(r"Traceback.*", text, re.DOTALL)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "hostile.py").write_text(PARSER)
    pipeline = {
        **embedded_parts(),
        "parser": "hostile:parse",
        "min_free_bytes": 1024,
        "flush_interval_seconds": 0.2,
        "serve": True,
    }
    configuration = {"storage_root": "data", "pipelines": {"docs": pipeline}}
    (folder / "fuploader.yaml").write_text(yaml.safe_dump(configuration))
    return folder


def fuploader(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(FUPLOADER), *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "400", "FUPLOADER_SERVE_TOKEN": "0123456789abcdef"},
        capture_output=True,
        timeout=120,
        check=False,
    )


def drained(folder: Path, messages: list[dict[str, str]]) -> bytes:
    """Publish and drain; returns what the drain logged."""
    bodies = [json.dumps(one).encode() for one in messages]
    publish_bodies(intake(folder, source=EmbeddedQueue(path=folder / "queue")), bodies)
    log = folder / "drain.log"
    with log.open("wb") as file:
        drain = subprocess.Popen([str(FUPLOADER), "drain"], cwd=folder, stderr=file)
        try:
            layout = Layout(folder / "data" / "docs")
            bad = sum("bad" in one for one in messages)
            wait_until(
                lambda: (
                    read_counts(layout).total == bad
                    and b"draining" in fuploader(folder, "status").stdout
                ),
                seconds=60,
                what="the dead letters",
                diagnose=lambda: log.read_text(errors="replace"),
            )
        finally:
            drain.terminate()
            drain.wait(60)
    return log.read_bytes()


def test_no_command_and_no_log_shows_what_a_terminal_would_obey(project: Path) -> None:
    """Each command, with hostile messages, names, reasons, paths and arguments."""
    messages = [{"bad": "[/red]"}, {"bad": HOSTILE}, {"file_name": NAME, "a": "1"}]
    log = drained(project, messages)
    assert b"unknown id x\\x1b[2J" in log
    assert problems_of(log) == []
    layout = Layout(project / "data" / "docs")
    outputs: dict[str, bytes] = {}
    used = {"drain"}

    def run(*arguments: str) -> bytes:
        done = fuploader(project, *arguments)
        outputs[repr(arguments)] = done.stdout + done.stderr
        used.add(arguments[0])
        return done.stdout

    run("seal")
    (partition,) = sealed_partitions(layout)
    note_failure(layout, partition, stage="upload", error=HOSTILE + "[/red]", now=time.time())
    report = StatusReport(layout, 0)
    report.doing("trouble", StateUnavailable("could not open 'a[/red]b' " + HOSTILE))
    run("status")
    report.remove()
    run("ship")
    assert list(receipts_between(layout)) == [partition]
    with Catalog(layout.catalog) as catalog:
        other = CatalogedArchive(f"s3://b/{HOSTILE}", "k", "p", "", 1, 1, None)
        catalog.add(other, ["evilkey"])
    hosts = ("127.0.0.1:1/", "127.0.0.1:1/[/red]", "")
    (project / "addresses.txt").write_text(
        "".join(f"http://{host}{HOSTILE.replace(chr(10), '')} {NAME}\n" for host in hosts)
    )
    for arguments in (
        ("status",),
        ("ls", partition),
        ("ls", HOSTILE),
        ("cat", partition, NAME + "?"),
        ("verify", partition, HOSTILE, "./" + HOSTILE),
        ("restore", partition, "out" + HOSTILE.replace("/", "")),
        ("restore", partition, "out" + HOSTILE.replace("/", "")),
        ("find", "*"),
        ("find", "evilkey"),
        ("find", HOSTILE),
        ("find", "[/red]"),
        ("catalog", "rebuild"),
        ("replay", HOSTILE),
        ("doctor",),
        ("migrate", "--dry-run"),
        ("init", "new" + HOSTILE.replace("/", "")),
        ("dev", "--port", HOSTILE),
        ("dev", "-c", HOSTILE),
        ("publish", HOSTILE),
        ("process", HOSTILE),
        ("process", "fuploader.yaml", "--header", HOSTILE),
        ("partitions",),
        ("partitions", "--state", HOSTILE),
        ("try", HOSTILE),
        ("try", "addresses.txt"),
        ("try", "fuploader.yaml", "--header", HOSTILE),
        ("lint",),
        ("lint", "-c", HOSTILE),
        ("schema",),
        ("dead-letters", "list"),
        ("dead-letters", "show", HOSTILE),
        ("dead-letters", "requeue", HOSTILE),
        ("dead-letters", "export", "letters" + HOSTILE.replace("/", "")),
        ("status", "-p", HOSTILE),
        ("status", HOSTILE),
        (HOSTILE,),
        ("fetch", HOSTILE),
        ("fetch", "addresses.txt", "-o", "fetched", "--allow-host", "127.0.0.1"),
        ("pause", HOSTILE),
        ("pause", "docs", "--reason", HOSTILE + "[/red]"),
        ("status",),
        ("doctor",),
        ("ship",),
        ("resume", HOSTILE),
        ("resume", "docs"),
        ("metrics",),
        ("metrics", "--output", HOSTILE),
        ("serve", "--host", HOSTILE),
        ("serve", "--tls-cert", HOSTILE),
        ("serve", "--root-path", HOSTILE),
    ):
        run(*arguments)
    wrong = {name: found for name, out in outputs.items() if (found := problems_of(out))}
    assert wrong == {}
    assert b"[/red]" in outputs["('status',)"] + outputs["('find', '[/red]')"]
    assert used >= {one.name for one in app.COMMANDS}
    # Programs get what it is.
    listed = json.loads(run("ls", partition, "--json"))
    assert [one["name"] for one in listed["members"]] == [NAME]
    reasons = [one["reason"] for one in json.loads(run("dead-letters", "list", "--json"))]
    assert any(HOSTILE in reason for reason in reasons)
