"""Metrics on their way out: a real Prometheus, node_exporter's file, the drain sensor's port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fuploader_dagster.health.metrics import METRICS
from fuploader_dagster.intake.supervisor import supervisor_for
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from tests.deployment import DEPLOY
from tests.drains import MARK, files, publish
from tests.integration.test_cli import FUPLOADER, configure, fuploader, until
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess, binary
from tests.settings import pipeline
from tests.ticking import Ticking

MESSAGES = 40
ACKNOWLEDGED = "fuploader_messages_acknowledged_total"


def total(text: str, name: str) -> float:
    families = text_string_to_metric_families(text)
    (found,) = [one for family in families for one in family.samples if one.name == name]
    return found.value


def fetched(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310  our own
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


@pytest.fixture
def drain(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A drain with its port, and the folder it runs in."""
    configure(tmp_path, min_free_bytes=MARK)
    port = free_port()
    command = [str(FUPLOADER), "drain", "--ship", "--metrics-port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        yield port, tmp_path
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(120)


def test_a_real_prometheus_scrapes_a_drain_and_takes_the_rules(
    drain: tuple[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    port, folder = drain
    home = tmp_path_factory.mktemp("prometheus")
    own_port = free_port()
    shutil.copy(DEPLOY / "prometheus" / "fuploader.rules.yml", home)
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["fuploader.rules.yml"],
        "scrape_configs": [
            {"job_name": "fuploader", "static_configs": [{"targets": [f"{LOOPBACK}:{port}"]}]}
        ],
    }
    (home / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = [
        binary("prometheus", package="prometheus"),
        f"--config.file={home}/prometheus.yml",
        f"--storage.tsdb.path={home}/data",
        f"--web.listen-address={LOOPBACK}:{own_port}",
    ]
    server = ServerProcess("prometheus", home / "log")
    address = f"http://{LOOPBACK}:{own_port}"

    def ask(query: str) -> list[float]:
        answer = fetched(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        found = json.loads(answer)["data"]["result"] if answer else []
        return [float(one["value"][1]) for one in found]

    def ready() -> bool:
        return "Ready" in fetched(f"{address}/-/ready")

    server.start(command, env=os.environ, cwd=home, ready=ready)
    try:
        until(lambda: ask("fuploader_up") == [1.0])
        assert ask(ACKNOWLEDGED) == [0.0]
        settings = pipeline(folder, source=EmbeddedQueue(path=folder / "queue"))
        publish(settings, files(MESSAGES))
        until(lambda: ask(ACKNOWLEDGED) == [float(MESSAGES)])
        assert ask("sum(fuploader_workers{doing='draining'})") != [0.0]
        found = json.loads(fetched(f"{address}/api/v1/label/__name__/values"))["data"]
        sent = {name for name in found if name.startswith("fuploader_")}
        assert sent <= METRICS.keys()
        rules = json.loads(fetched(f"{address}/api/v1/rules"))["data"]["groups"][0]["rules"]
        until(lambda: ask("fuploader_available{part='queue'}") == [1.0])
        assert {one["health"] for one in rules} <= {"ok", "unknown"}
    finally:
        server.stop()


def test_counters_go_on_after_a_restart(tmp_path: Path) -> None:
    configure(tmp_path, min_free_bytes=MARK, seal_messages=10, residue_file_upload=True)
    settings = pipeline(tmp_path, source=EmbeddedQueue(path=tmp_path / "queue"))
    for life in (1, 2):
        publish(settings, files(MESSAGES, prefix=f"life{life}-"))
        with (tmp_path / "log").open("ab") as log:
            running = subprocess.Popen(
                [str(FUPLOADER), "drain", "--ship"], cwd=tmp_path, stdout=log, stderr=log
            )
        wanted = float(life * MESSAGES)
        until(lambda: total(fuploader(tmp_path, "metrics").stdout, ACKNOWLEDGED) == wanted)  # noqa: B023
        running.send_signal(signal.SIGTERM)
        running.wait(120)
        text = fuploader(tmp_path, "metrics").stdout
        assert total(text, ACKNOWLEDGED) == wanted
        assert total(text, "fuploader_messages_stored_total") == wanted


def test_a_file_for_node_exporter_is_replaced_in_one_step_and_others_can_read_it(
    tmp_path: Path,
) -> None:
    configure(tmp_path)
    target = tmp_path / "out" / "docs.prom"
    target.parent.mkdir()
    before = os.umask(0o077)
    try:
        done = fuploader(tmp_path, "metrics", "--output", str(target))
    finally:
        os.umask(before)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert total(target.read_text(), "fuploader_up") == 1
    with target.open() as reader:  # of the first file, while the second one comes
        assert fuploader(tmp_path, "metrics", "--output", str(target)).returncode == 0
        assert total(reader.read(), "fuploader_up") == 1
        assert os.fstat(reader.fileno()).st_nlink == 0
    assert [path.name for path in target.parent.iterdir()] == ["docs.prom"]


@pytest.mark.parametrize(
    ("output", "said"), [("docs.txt", "does not end with .prom"), ("no/docs.prom", "No such file")]
)
def test_a_file_that_cannot_be_is_a_sentence(tmp_path: Path, output: str, said: str) -> None:
    configure(tmp_path)
    done = fuploader(tmp_path, "metrics", "--output", output)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_drain_sensor_serves_metrics_where_its_settings_say(tmp_path: Path) -> None:
    port = free_port()
    settings = pipeline(
        tmp_path, source=EmbeddedQueue(path=tmp_path / "queue"), metrics_port=port, process_count=1
    )
    try:
        Ticking(settings).tick()
        text = fetched(f"http://{LOOPBACK}:{port}/metrics")
    finally:
        supervisor_for(settings.intake()).stop()
    assert total(text, "fuploader_up") == 1
