"""The commands partitions, try, lint, schema, dead-letters show, as programs and people see them.

The keys of what `--json` prints are a contract (docs/compatibility.md): keys may be added here,
never taken away.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from fuploader_dagster.cli import app, console
from fuploader_dagster.cli.exit_codes import DAMAGED, WRONG_USAGE
from fuploader_dagster.contracts.source import Message
from fuploader_dagster.dead_letters.letters import DeadLetterBox
from fuploader_dagster.delivery.failures import note_failure
from fuploader_dagster.delivery.ship import pack_partitions, ship
from fuploader_dagster.errors import BadMessage, FuploaderError
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import embedded_parts

KEYS = {
    "partitions": {
        *("pipeline", "partition", "state", "sealed_at", "messages", "payload_bytes"),
        *("archive_bytes", "key", "address", "stored_at", "trouble"),
    },
    "try": {"pipeline", "name", "headers", "size_bytes", "sha256", "key"},
    "lint": {"pipeline", "check", "verdict", "found", "hint"},
    "doctor": {"pipeline", "check", "verdict", "found", "hint"},
    "dead-letters show": {
        *("time", "reason", "redelivered", "message_id", "attributes", "body", "item"),
    },
    "dead-letters list": {"id", "time", "reason"},
    "status": {
        *("pipeline", "node", "workers", "parts", "queue", "slots", "sealed", "processed"),
        *("redos", "room", "stored_messages", "duplicates", "dead_letters", "failed_items"),
        *("processor_trouble", "sinks", "notices", "failures", "mended", "set_aside"),
    },
}

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command in the folder, in this process; an error of ours is raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.console, "_width", 300)

    def call(*arguments: str, **more: Any) -> Any:
        result = CliRunner().invoke(app.app, list(arguments), **more)
        if isinstance(result.exception, FuploaderError):
            raise result.exception
        return result

    return call


def configured(folder: Path, **values: Any) -> Pipeline:
    content = {"pipelines": {"docs": {**embedded_parts(), **values}}}
    (folder / "fuploader.yaml").write_text(yaml.safe_dump(content))
    return load_pipelines(folder / "fuploader.yaml")["docs"]


def sealed(settings: Pipeline, name: str, content: bytes = b"{}") -> str:
    with SlotOwner(settings, 0) as owner:
        owner.add(name, content)
        owner.commit()
        slot = owner.seal("request")
    assert slot is not None
    return slot.seal.partition


def letter(settings: Pipeline, body: bytes) -> str:
    box = DeadLetterBox(settings.layout, 0)
    message = Message(body, 1, False, "id-7")
    box.keep([box.letter(message, BadMessage("it is [red]odd"), lambda _: {"headers": {"h": "v"}})])
    return "drain-0"


def test_partitions_are_listed_with_state_sizes_and_problem(run: Run, tmp_path: Path) -> None:
    settings = configured(tmp_path)
    assert "no partition" in run("partitions").stdout
    stored = sealed(settings, "a.json", b"x" * 3000)
    for outcome in ship(settings, settings.store.open()):
        assert not hasattr(outcome, "error"), outcome
    packed = sealed(settings, "b.json")
    list(pack_partitions([packed], settings))
    failed = sealed(settings, "c.json")
    note_failure(settings.layout, failed, stage="upload", error="the bucket is gone", now=1.0)
    listed = json.loads(run("partitions", "--json").stdout)
    assert [(one["partition"], one["state"]) for one in listed] == [
        (failed, "sealed"),
        (packed, "packed"),
        (stored, "stored"),
    ]
    assert all(one.keys() >= KEYS["partitions"] for one in listed)
    assert listed[0]["trouble"]["error"] == "the bucket is gone"
    assert listed[0]["archive_bytes"] is None
    assert listed[1]["archive_bytes"] > 0
    assert listed[2]["payload_bytes"] == 3000
    assert listed[2]["stored_at"]
    only = json.loads(run("partitions", "--json", "--state", "failed").stdout)
    assert [one["partition"] for one in only] == [failed]
    assert len(json.loads(run("partitions", "--json", "--limit", "1").stdout)) == 1
    shown = run("partitions", "-n", "2").stdout
    assert "the bucket is gone" in shown
    assert "there are more than 2: --limit 0 shows all" in shown
    assert "2.9 KiB" in run("partitions", "--state", "stored").stdout
    assert "no partition is processed" in run("partitions", "--state", "processed").stdout


def test_a_state_that_does_not_exist_says_which_there_are(run: Run, tmp_path: Path) -> None:
    configured(tmp_path)
    with pytest.raises(FuploaderError, match="did you mean stored"):
        run("partitions", "--state", "stord")


def test_try_shows_name_headers_digest_and_key_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    settings = configured(
        tmp_path,
        headers=["cmd"],
        message_format="json",
        name_fields=["id"],
        split_by=["tenant"],
        key="{tenant}/{archive}",
    )
    body = b'{"id": "o-1", "tenant": "blue"}'
    (tmp_path / "body").write_bytes(body)
    before = sorted(tmp_path.rglob("*"))
    found = json.loads(run("try", "body", "--header", "CMD=x", "--header", "b=y", "--json").stdout)
    assert found.keys() >= KEYS["try"]
    assert found["name"] == "o-1"
    assert found["headers"] == {"cmd": "x"}
    assert found["sha256"] == hashlib.sha256(body).hexdigest()
    assert found["key"].startswith("blue/") and found["key"].endswith(settings.archive_suffix)
    assert '"tenant": "blue"' in run("try", "-", input=body).stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_try_says_why_a_message_would_become_a_dead_letter(run: Run, tmp_path: Path) -> None:
    configured(tmp_path)
    (tmp_path / "body").write_bytes(b'{"id": 1}')
    with pytest.raises(BadMessage, match="would become a dead letter") as caught:
        run("try", "body")
    assert "set message_format: json" in caught.value.hint
    assert app.exit_code_of(caught.value) == DAMAGED
    (tmp_path / "envelope").write_bytes(encode("a.json", b'{"n": 1}'))
    assert "name:    a.json" in run("try", "envelope").stdout


def test_lint_needs_neither_network_nor_secrets(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("lint asked the network")

    unset = {"env": "FUPLOADER_TEST_IS_NOT_SET"}
    configured(
        tmp_path,
        source={"kind": "rabbitmq", "queue": "q", "url": unset},
        state={"kind": "redis", "url": unset},
        store={"kind": "s3", "bucket": "b", "secret_access_key": unset, "access_key_id": unset},
    )
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    result = run("lint", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert all(one.keys() >= KEYS["lint"] for one in found)
    assert any("FUPLOADER_TEST_IS_NOT_SET" in one["found"] for one in found)
    assert "every setting can be used" in run("lint").stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_lint_ends_with_2_where_something_is_wrong(run: Run, tmp_path: Path) -> None:
    configured(tmp_path)
    with (tmp_path / "fuploader.yaml").open("a") as file:
        file.write("    seal_mesages: 1\n")
    result = run("lint", "--json")
    assert result.exit_code == WRONG_USAGE
    (found,) = json.loads(result.stdout)
    assert found["verdict"] == "wrong"
    assert "did you mean seal_messages" in found["found"]


def wrong(*, of: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    """The settings of a pipeline, changed."""
    return {**embedded_parts(), **(of or {}), **values}


def test_lint_says_what_is_wrong_with_each_pipeline_and_with_each_setting(
    run: Run, tmp_path: Path
) -> None:
    pipelines = {
        "typo": wrong(seal_mesages=1, max_retries=-1),
        "good": embedded_parts(),
        "parts": wrong(
            of={"source": {"kind": "kafak"}, "store": {"kind": "local"}},
            sinks={"rows": {"kind": "sql"}},
            seal_bytes=0,
        ),
        "shell": wrong(
            of={"source": {"kind": "embedded", "path": "${A}"}}, storage_root="${B}", seal_byte=1
        ),
    }
    (tmp_path / "fuploader.yaml").write_text(yaml.safe_dump({"pipelines": pipelines}))
    result = run("lint", "--json")
    assert result.exit_code == WRONG_USAGE
    said: dict[str, str] = {}
    for one in json.loads(result.stdout):
        assert one.keys() >= KEYS["lint"]
        if one["verdict"] == "wrong":
            said[one["pipeline"]] = said.get(one["pipeline"], "") + one["found"] + "\n"
    assert said.keys() == {"typo", "parts", "shell"}
    assert "did you mean seal_messages" in said["typo"]
    assert "max_retries" in said["typo"]
    for setting in ("source.kind", "store: path", "sinks.rows", "seal_bytes"):
        assert setting in said["parts"]
    assert "InstanceOf" not in said["parts"] and "instance of" not in said["parts"]
    for what in ("${A}", "${B}", "did you mean seal_bytes"):
        assert what in said["shell"]
    assert "good" in run("lint").stdout
    with pytest.raises(FuploaderError) as caught:  # all other commands say it too, and do nothing
        run("status")
    for setting in ("seal_messages", "source.kind", "seal_bytes", "${B}"):
        assert setting in str(caught.value)


def test_lint_names_each_two_pipelines_with_one_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").mkdir()
    for other in "yz":
        (tmp_path / "a" / other).symlink_to("x")
    pipelines = {name: wrong(storage_root="a") for name in "xyz"}
    (tmp_path / "fuploader.yaml").write_text(yaml.safe_dump({"pipelines": pipelines}))
    result = run("lint", "--json")
    assert result.exit_code == WRONG_USAGE
    found = [one["found"] for one in json.loads(result.stdout) if one["verdict"] == "wrong"]
    assert [one.split(" have ")[0] for one in found] == ["pipelines x and y", "pipelines x and z"]


def test_lint_says_what_is_wrong_with_each_component(run: Run, tmp_path: Path) -> None:
    attributes = [wrong(name="a", seal_mesages=1), wrong(name="b"), wrong(name="c", max_retries=-1)]
    documents = [
        {"type": "fuploader_dagster.QueueToObjectStore", "attributes": one} for one in attributes
    ]
    (tmp_path / "defs.yaml").write_text(yaml.safe_dump_all(documents))
    result = run("lint", "--json", "--config", "defs.yaml")
    assert result.exit_code == WRONG_USAGE
    verdicts = {one["pipeline"]: one["verdict"] for one in json.loads(result.stdout)}
    assert {name: verdicts[name] for name in "abc"} == {"a": "wrong", "b": "good", "c": "wrong"}


def test_lint_and_doctor_warn_of_pipelines_that_take_from_each_other(
    run: Run, tmp_path: Path
) -> None:
    both = {"pipelines": {"a": embedded_parts(), "b": embedded_parts()}}
    (tmp_path / "fuploader.yaml").write_text(yaml.safe_dump(both))
    for command in ("lint", "doctor"):
        result = run(command, "--json")
        assert result.exit_code == 0
        (found,) = [one for one in json.loads(result.stdout) if one["check"] == "overlaps"]
        assert found.keys() >= KEYS[command]
        assert found["verdict"] == "warning"
        assert "drain the same queue" in found["found"]


def test_schema_prints_json_for_editors(run: Run) -> None:
    made = json.loads(run("schema").stdout)
    assert made["$defs"]["pipeline"]["properties"]["seal_messages"]["default"] == 10_000


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ('{"text": "grün"}\nsecond line'.encode(), ['    {"text": "grün"}', "    second line"]),
        (b"\xff\xfe\x00", ["    3 bytes that are no text: ff fe 00"]),
        (b"[red]\x1b[31m", ["    [red]\\x1b[31m"]),
    ],
)
def test_show_prints_a_body_that_is_text_as_text(
    run: Run, tmp_path: Path, body: bytes, shown: list[str]
) -> None:
    letter(configured(tmp_path), body)
    (listed,) = json.loads(run("dead-letters", "list", "--json").stdout)
    assert listed.keys() >= KEYS["dead-letters list"]
    said = run("dead-letters", "show", listed["id"]).stdout
    for line in ["it is [red]odd", "message_id: id-7", "attributes.headers: {'h': 'v'}", *shown]:
        assert line in said
    as_json = json.loads(run("dead-letters", "show", listed["id"], "--json").stdout)
    assert as_json.keys() >= KEYS["dead-letters show"]


def test_an_empty_list_says_none_and_shows_no_empty_table(run: Run, tmp_path: Path) -> None:
    configured(tmp_path)
    for command, none in (
        (("dead-letters", "list"), "no dead letter waits"),
        (("status",), "no worker runs on this node"),
    ):
        said = run(*command).stdout
        assert none in said
        assert "━" not in said


def test_status_has_the_keys_that_programs_read(run: Run, tmp_path: Path) -> None:
    configured(tmp_path)
    (found,) = json.loads(run("status", "--json").stdout)
    assert found.keys() >= KEYS["status"]


def test_status_counts_and_sizes_are_for_people(run: Run, tmp_path: Path) -> None:
    settings = configured(tmp_path)
    sealed(settings, "a.json", b"x" * 5000)
    publisher = settings.source.publisher()
    publisher.publish([(b"x", {})])
    publisher.close()
    said = run("status").stdout
    assert "1 slot sealed and not yet in the object store" in said
    assert "1 message waits" in said
    assert "KiB are not in the object store yet" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": {"kind": "rabitmq", "queue": "q"}}, "did you mean rabbitmq?"),
        ({"store": {"kind": "locl", "path": "x"}}, "did you mean local?"),
        (
            {"source": {"kind": "rabbitmq", "queue": "q", "heartbeat_second": 1}},
            "did you mean heartbeat_seconds?",
        ),
        ({"takeover": {"task_nam": "x"}}, "did you mean task_name?"),
        (
            {
                "source": {
                    "kind": "sql",
                    "url": "sqlite:////x",
                    "table": "t",
                    "skip_done": {"tabl": "x"},
                }
            },
            "did you mean table?",
        ),
    ],
)
def test_a_mistyped_kind_or_setting_is_told_what_was_meant(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(FuploaderError) as caught:
        configured(tmp_path, **changes)
    assert said in str(caught.value)


def test_a_mistyped_pipeline_is_told_what_was_meant(run: Run, tmp_path: Path) -> None:
    configured(tmp_path)
    with pytest.raises(FuploaderError, match="did you mean docs"):
        run("status", "-p", "doc")
