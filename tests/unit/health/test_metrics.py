"""Metrics: what they say, that docs, dashboard and rules name no others, and who serves them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.control.wishes import wish
from fuploader_dagster.dead_letters.letters import DeadLetterBox
from fuploader_dagster.delivery.failures import note_failure
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.delivery.store_trouble import note_refusal
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.health.metrics import FRESH_SECONDS, METRICS, PipelineMetrics
from fuploader_dagster.health.metrics_port import offer_metrics
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.settings.pipeline import Pipeline
from tests.deployment import DEPLOY, REPOSITORY
from tests.processors_for_tests import Script, script
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import binary
from tests.settings import pipeline, sealed

RULES = DEPLOY / "prometheus"
PROMTOOL = "promtool"
NAMES = re.compile(r"\bfuploader_[a-z_]+\b")


def promtool(*command: str | Path, given: bytes | None = None) -> str:
    program = binary(PROMTOOL, package="prometheus")
    done = subprocess.run(
        [program, *map(str, command)], input=given, capture_output=True, timeout=60, check=False
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def made(folder: Path, **values: Any) -> Pipeline:
    return pipeline(folder, **{"source": EmbeddedQueue(path=folder / "queue"), **values})


def read(text: bytes) -> dict[tuple[str, str], float]:
    """Values by metric and own label. Each sample has to be one that is promised."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            check(sample, family.type, family.documentation)
            own = {k: v for k, v in sample.labels.items() if k not in ("pipeline", "node")}
            found[sample.name, next(iter(own.values()), "")] = sample.value
    return found


def check(sample: Sample, kind: str, said: str) -> None:
    meaning = METRICS[sample.name]
    assert (kind, said) == (meaning.kind, meaning.help)
    own = ["pipeline", "node"] if sample.name != "fuploader_build_info" else []
    assert set(sample.labels) == {*own, *meaning.labels}
    assert sample.name.endswith("_total") == (kind == "counter")


def values(*pipelines: Pipeline) -> dict[tuple[str, str], float]:
    return read(PipelineMetrics(pipelines).text())


def test_metrics_say_what_waits_is_stored_failed_and_is_paused(tmp_path: Path) -> None:
    settings = made(tmp_path, process=Script())
    first = sealed(settings, {"a": script(), "b": script(bad="no")}, seconds_ago=100)
    before = values(settings)
    assert before["fuploader_up", ""] == 1
    assert before["fuploader_unshipped_slots", ""] == 1
    assert before["fuploader_unshipped_messages", ""] == 2
    assert before["fuploader_oldest_unshipped_seconds", ""] >= 100
    assert before["fuploader_unshipped_bytes", ""] >= first.segment.stat().st_size
    assert before["fuploader_messages_stored_total", ""] == 0
    assert ("fuploader_last_upload_timestamp_seconds", "") not in before
    list(process_partitions([first.seal.partition], settings))
    assert len(list(ship(settings, settings.store.open()))) == 1
    second = sealed(settings, {"c": script()})
    note_failure(settings.layout, second.seal.partition, stage="pack", error="x", now=1.0)
    wish(settings, ["intake"], paused=True, by="me", reason="")
    after = values(settings)
    assert after["fuploader_messages_stored_total", ""] == 2
    assert after["fuploader_archives_stored_total", ""] == 1
    assert after["fuploader_archives_stored_bytes_total", ""] > 0
    assert after["fuploader_unshipped_messages", ""] == 1
    assert after["fuploader_dead_letters_waiting", "process"] == 1
    assert after["fuploader_dead_letters_waiting", "drain"] == 0
    assert after["fuploader_failing_partitions", "pack"] == 1
    assert after["fuploader_failing_partitions", "upload"] == 0
    assert after["fuploader_pause_wanted", "intake"] == 1
    assert after["fuploader_pause_wanted", "shipping"] == 0
    assert after["fuploader_last_upload_timestamp_seconds", ""] > 1.7e9
    for part in ("queue", "state", "store", "processor"):
        assert after["fuploader_available", part] == 1
    note_refusal(settings.layout, "403", by_upload=True)
    assert values(settings)["fuploader_available", "store"] == 0
    assert after["fuploader_disk_min_free_bytes", ""] == settings.min_free_bytes


def test_the_metrics_of_several_pipelines_pass_promtools_check(tmp_path: Path) -> None:
    pipelines = [made(tmp_path / "a"), made(tmp_path / "b", name="other", node_id="n.1-x")]
    text = PipelineMetrics(pipelines).text()
    names = set(re.findall(r'pipeline="(\w+)"', text.decode()))
    assert names == {"docs", "other"}
    assert promtool("check", "metrics", given=text) == ""


def test_a_queue_that_does_not_answer_is_a_gap_and_no_zero(tmp_path: Path) -> None:
    found = values(made(tmp_path, source=RabbitMQ(url="amqp://127.0.0.1:1/", queue="q")))
    assert found["fuploader_up", ""] == 1
    assert found["fuploader_available", "queue"] == 0
    assert not [name for name, _ in found if name == "fuploader_queue_messages"]


def test_a_pipeline_that_cannot_be_read_takes_no_other_with_it(tmp_path: Path) -> None:
    broken = made(tmp_path / "a", name="broken")
    broken.layout.root.parent.mkdir(parents=True)
    broken.layout.root.symlink_to("broken")  # a loop
    text = PipelineMetrics([broken, made(tmp_path / "b")]).text().decode()
    assert 'fuploader_up{node="local",pipeline="broken"} 0.0' in text
    assert 'fuploader_up{node="local",pipeline="docs"} 1.0' in text


def test_asking_changes_nothing_on_the_disk(tmp_path: Path) -> None:
    settings = made(tmp_path)
    sealed(settings, {"a": b"a"})
    before = sorted(tmp_path.rglob("*"))
    values(settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_who_asks_often_gets_the_same_answer(tmp_path: Path) -> None:
    now = 0.0
    settings = made(tmp_path)
    metrics = PipelineMetrics([settings], clock=lambda: now)
    before = metrics.text()
    sealed(settings, {"a": b"a"})
    now += FRESH_SECONDS / 2
    assert metrics.text() == before
    now += FRESH_SECONDS
    assert metrics.text() != before


def test_dead_letters_of_the_drain_are_told_by_their_stage(tmp_path: Path) -> None:
    settings = made(tmp_path)
    box = DeadLetterBox(settings.layout, 0)
    box.keep(
        [
            box.letter(
                Message(b"x", 1, redelivered=False, message_id=None), BadMessage("no"), lambda _: {}
            )
        ]
    )
    assert values(settings)["fuploader_dead_letters_waiting", "drain"] == 1


def test_a_port_serves_the_pipelines_of_the_process(tmp_path: Path) -> None:
    port = free_port()
    for name in ("docs", "more"):
        assert offer_metrics(made(tmp_path / name, name=name, metrics_port=port))
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = answer.read().decode()
    assert set(re.findall(r'fuploader_up{.*pipeline="(\w+)"', text)) == {"docs", "more"}


def test_a_port_that_is_taken_is_logged_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        settings = made(tmp_path, metrics_port=taken.getsockname()[1])
        for _ in range(3):
            assert not offer_metrics(settings)
        assert caplog.text.count("cannot be listened on") == 1
    assert offer_metrics(settings)
    assert not offer_metrics(made(tmp_path))


def test_the_docs_list_every_metric_with_its_meaning() -> None:
    text = (REPOSITORY / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", text, re.M)
    assert {name: (kind, labels, said) for name, kind, labels, said in rows} == {
        name: (one.kind, ", ".join(f"`{label}`" for label in one.labels), one.help)
        for name, one in METRICS.items()
    }


@pytest.mark.parametrize(
    "path",
    [
        "deploy/grafana/fuploader.json",
        "deploy/prometheus/fuploader.rules.yml",
        "deploy/prometheus/fuploader.rules.test.yml",
        "docs/metrics.md",
    ],
)
def test_what_a_dashboard_a_rule_or_a_page_names_exists(path: str) -> None:
    text = (REPOSITORY / path).read_text("utf-8")
    named = set(NAMES.findall(text)) - {"fuploader_dagster"}
    assert named <= METRICS.keys()
    assert len(named) >= 5


def test_the_dashboard_shows_every_metric_but_those_that_say_nothing_over_time() -> None:
    board = json.loads((DEPLOY / "grafana" / "fuploader.json").read_text("utf-8"))
    shown = set(NAMES.findall(json.dumps(board["panels"])))
    assert METRICS.keys() - shown == {"fuploader_up", "fuploader_disk_free_inodes"}
    labels = {label for one in METRICS.values() for label in one.labels} | {"pipeline", "node"}
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def test_every_alert_rule_is_valid_and_has_a_test() -> None:
    rules = RULES / "fuploader.rules.yml"
    assert "SUCCESS" in promtool("check", "rules", rules)
    assert "SUCCESS" in promtool("test", "rules", RULES / "fuploader.rules.test.yml")
    alerts = set(re.findall(r"alert: (\w+)", rules.read_text("utf-8")))
    tested = re.findall(
        r"alertname: (\w+)\n +exp_alerts", (RULES / "fuploader.rules.test.yml").read_text()
    )
    assert alerts == set(tested)


def test_the_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    board = json.loads((DEPLOY / "grafana" / "fuploader.json").read_text("utf-8"))
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = {
        "groups": [
            {
                "name": "dashboard",
                "rules": [{"record": f"r{n}", "expr": expr} for n, expr in enumerate(found)],
            }
        ]
    }
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps(rules))
    assert f"{len(found)} rules found" in promtool("check", "rules", path)
