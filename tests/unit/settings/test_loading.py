"""Loading: file and environment give validated pipelines, or one error that names the setting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.settings.loading import dump_intake, load_intake, load_pipelines
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from tests.settings import embedded_parts, intake

SECRET = "hunter2"


class OwnQueue(EmbeddedQueue):
    """A backend of a user's own."""

    shelf: str = ""


def parser_of_a_user(body: bytes) -> dict[str, Any]:
    return {"file_name": "x", "body": body.decode()}


def name_of_a_user(_: Any) -> str:
    return "x"


def key_of_a_user(archive: str) -> str:
    return f"mine/{archive}"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables that are looked at comes from outside."""
    for name in list(os.environ):
        if name.startswith(("FUPLOADER_", "META_WRITER_", "RESIDUE_")) or name == "NODE_ID":
            monkeypatch.delenv(name)


def values_of(**changes: Any) -> dict[str, Any]:
    """A pipeline's part of the file."""
    return {
        **embedded_parts(),
        **changes,
    }


def load(folder: Path, content: Any) -> dict[str, Pipeline]:
    path = folder / "fuploader.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_pipelines(str(path))


def load_one(folder: Path, **changes: Any) -> Pipeline:
    return load(folder, {"pipelines": {"documents": values_of(**changes)}})["documents"]


def complaint(folder: Path, content: Any) -> str:
    """The error's whole text, which never shows the secret."""
    with pytest.raises(ConfigError) as caught:
        load(folder, content)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    return str(caught.value)


def complaint_of_one(folder: Path, **changes: Any) -> str:
    return complaint(folder, {"pipelines": {"documents": values_of(**changes)}})


def test_a_short_file_gives_a_pipeline_with_defaults(tmp_path: Path) -> None:
    settings = load_one(tmp_path)
    assert (settings.name, settings.seal_messages, settings.process_count) == (
        "documents",
        10_000,
        1,
    )
    assert isinstance(settings.source, EmbeddedQueue)


def test_settings_beside_the_pipelines_apply_to_all_and_each_may_differ(tmp_path: Path) -> None:
    one, two = values_of(), values_of(seal_messages=2)
    shared = {"seal_messages": 1, "storage_root": "elsewhere"}
    folder = str(tmp_path / "elsewhere")
    loaded = load(tmp_path, {**shared, "pipelines": {"one": one, "two": two}})
    assert [(p.name, p.seal_messages, str(p.storage_root)) for p in loaded.values()] == [
        ("one", 1, folder),
        ("two", 2, folder),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"seal_mesages": 1},
            "documents: seal_mesages: there is no such setting, did you mean seal_messages?",
        ),
        ({"xyz": SECRET}, "pipelines.documents: xyz: there is no such setting"),
        ({"seal_messages": "many"}, "pipelines.documents: seal_messages: Input should be"),
        ({"seal_messages": None}, "pipelines.documents: seal_messages: Input should be"),
        ({"source": None}, "pipelines.documents.source must be a mapping with a `kind`"),
        ({"source": {"path": "x"}}, "source must be a mapping with a `kind`"),
        ({"source": f"amqp://u:{SECRET}@h"}, "source must be a mapping with a `kind`"),
        (
            {"source": {"kind": "pulsar"}},
            "kinds are rabbitmq, embedded, sql, redis_stream, redis_list, kafka, or package.",
        ),
        ({"source": {"kind": f"amqp://u:{SECRET}@h"}}, "documents.source.kind: it is not of the"),
        ({"state": {"kind": "sqlite"}}, "documents.state: path: Field required"),
        (
            {"store": {"kind": "ftp"}},
            "kinds are s3, cos, oss, local, mirror, or package.module:Class",
        ),
        ({"store": {"kind": "no_such_module:X"}}, "store.kind: cannot import 'no_such_module'"),
        ({"store": {"kind": "os.path:joint"}}, "module 'os.path' has no 'joint'"),
        ({"store": {"kind": "os.path:join"}}, "os.path:join does not implement OpensObjectStore"),
        ({"source": {"kind": "builtins:dict"}}, "builtins:dict does not implement SourceSettings"),
        ({"source": {"kind": "embedded", True: 1}}, "a bool, not a string (YAML reads on, off"),
        ({True: 1}, "Input should be a valid string"),
        (
            {"source": {"kind": "rabbitmq", "queue": "q", "passwort": SECRET}},
            "source: passwort: there is no such setting, did you mean password?",
        ),
        (
            {"source": {"kind": "rabbitmq", "queue": "q", "password": [SECRET]}},
            "source: password: Input should be a valid string",
        ),
        (
            {"source": {"kind": "rabbitmq", "queue": "q", "url": f"http://u:{SECRET}@h"}},
            "source: url: url must look like amqp://",
        ),
        (
            {"source": {"kind": "rabbitmq", "queue": "q", "heartbeat_seconds": SECRET}},
            "source: heartbeat_seconds: Input should be a valid integer",
        ),
        (
            {"store": {"kind": "s3", "bucket": "b", "secret_access_key": SECRET}},
            "pipelines.documents.store: S3.secret_access_key is given literally",
        ),
        (
            {"store": {"kind": "s3", "bucket": "b", "secret": SECRET}},
            "documents.store: secret: there is no such setting",
        ),
        ({"parser": SECRET}, "parser: it is not of the form package.module:name"),
        ({"parser": f"user:{SECRET}"}, "parser: cannot import 'user'"),
        (
            {"parser": "tests.unit.settings.broken_module:f"},
            "cannot import 'tests.unit.settings.broken_module': ",
        ),
        ({"key": "documents/archive"}, "key: key template must contain {archive} or {partition}"),
        ({"key": "{archive}/{hour}"}, "key template has unknown fields ['hour']; known are"),
        ({"key": "{archive}/{}"}, "key template has unknown fields ['']"),
        ({"key": "{archive!x}"}, "key template cannot be filled in"),
        ({"key": "{number:zz}/{archive}"}, "key template cannot be filled in"),
        ({"key": "{archive"}, "key template is malformed"),
        ({"key": "/{archive}"}, "key template makes unusable keys"),
        ({"key": "a/../{archive}"}, "key template makes unusable keys"),
        ({"prefetch_count": 100, "commit_messages": 100}, "prefetch_count (100) must be larger"),
    ],
)
def test_a_wrong_setting_is_named_with_its_path_and_no_secret_is_shown(
    tmp_path: Path, changes: dict[Any, Any], said: str
) -> None:
    content = {"pipelines": {"documents": {**values_of(), **changes}}}
    assert said in complaint(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must be a mapping with `pipelines:`"),
        ("[1]", "must be a mapping with `pipelines:`"),
        ("storage_root: x", "defines no pipeline"),
        ("pipelines: {}", "defines no pipeline"),
        ("pipelines: [1]", "pipelines: Input should be a valid dictionary"),
        ("pipelines: {documents: }", "pipelines.documents: Input should be a valid dictionary"),
        ("on: 1\npipelines: {}", "has a setting whose name is a bool"),
        (f'pipelines: {{a: {{password: "{SECRET}}}}}', "is not valid YAML in line 1, column"),
        (f"a: {SECRET}: b", "is not valid YAML in line 1, column"),
        ("a: \x01", "is not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place_but_not_the_line(
    tmp_path: Path, content: str, said: str
) -> None:
    found = complaint(tmp_path, content)
    assert said in found
    assert "fuploader.yaml" in found


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file .*fuploader init"):
        load_pipelines(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_pipelines(tmp_path)


def test_the_file_is_found_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"pipelines": {"mine": values_of()}}))
    monkeypatch.setenv("FUPLOADER_CONFIG", str(path))
    assert list(load_pipelines()) == ["mine"]


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUPLOADER_PIPELINES__DOCUMENTS__SEAL_MESSAGES", "7")
    monkeypatch.setenv("FUPLOADER_PIPELINES__DOCUMENTS__NAME_FIELDS", "id,name")
    monkeypatch.setenv("FUPLOADER_PIPELINES__DOCUMENTS__SOURCE__PATH", "other")
    settings = load_one(tmp_path, seal_messages=3)
    assert settings.seal_messages == 7
    assert settings.name_fields == ("id", "name")
    assert isinstance(settings.source, EmbeddedQueue)
    assert settings.source.path == tmp_path / "other"


def test_a_variable_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUPLOADER_PIPELINES", SECRET)
    assert "FUPLOADER_PIPELINES in the environment" in complaint_of_one(tmp_path)


def test_fuploaders_variables_win_over_the_file_but_not_over_the_pipelines_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_ID", " node_id-10.0.0.1 ")
    monkeypatch.setenv("META_WRITER_PROCESS_COUNT", "3")
    monkeypatch.setenv("META_WRITER_MAX_TASKS_PER_CHILD", "1000")
    monkeypatch.setenv("META_WRITER_RABBITMQ_PREFETCH_COUNT", "50")
    monkeypatch.setenv("FUPLOADER_PIPELINES__DOCUMENTS__PROCESS_COUNT", "2")
    settings = load_one(tmp_path, node_id="from-file", max_tasks_per_child=5)
    assert settings.node_id == "node_id-10.0.0.1"
    assert settings.process_count == 2
    assert settings.max_tasks_per_child == 1000
    assert (settings.prefetch_count, settings.commit_messages) == (50, 25)


def test_a_node_name_is_the_same_in_fuploaders_worker_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_ID", "node_id-10.0.0.1-meta-p0")
    assert load_one(tmp_path).node_id == "node_id-10.0.0.1"


@pytest.mark.parametrize(
    ("variables", "residue"),
    [
        ({"RESIDUE_FILE_UPLOAD": "true"}, True),
        ({"RESIDUE_FILE_UPLOADE": "on"}, True),
        ({"RESIDUE_FILE_UPLOADE": "0", "RESIDUE_FILE_UPLOAD": "yes"}, False),
        ({"RESIDUE_FILE_UPLOAD": " "}, False),
    ],
)
def test_residue_upload_can_be_set_under_both_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], residue: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_one(tmp_path).residue_file_upload is residue


def test_a_wrong_value_in_fuploaders_variable_is_named_by_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("META_WRITER_PROCESS_COUNT", "two")
    assert (
        "process_count (from META_WRITER_PROCESS_COUNT in the environment): Input should be"
        in complaint_of_one(tmp_path)
    )


def test_a_custom_backend_is_named_by_module_and_class(tmp_path: Path) -> None:
    own = {"kind": "tests.unit.settings.test_loading:OwnQueue", "path": "q", "shelf": "top"}
    source = load_one(tmp_path, source=own).source
    assert isinstance(source, OwnQueue)
    assert source.shelf == "top"


def test_secrets_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", SECRET)
    queue = {"kind": "rabbitmq", "queue": "q", "password": {"env": "BROKER_PASSWORD"}}
    settings = load_one(tmp_path, source=queue)
    assert isinstance(settings.source, RabbitMQ)
    assert settings.source.password.get_secret_value() == SECRET
    assert SECRET not in repr(settings)


def test_a_worker_gets_the_same_settings_through_its_pipe(tmp_path: Path) -> None:
    settings = intake(
        tmp_path,
        source=RabbitMQ(queue="q", url=f"amqp://u:{SECRET}@h/v"),
        node_id="n",
        parser=parser_of_a_user,
        file_name=name_of_a_user,
        key=key_of_a_user,
        prefetch_count=50,
        name_fields=("id",),
        slot_format="files",
        residue_file_upload=True,
    )
    line = dump_intake(settings)
    assert b"\n" not in line
    received = load_intake(line)
    assert received == settings
    assert received.source.url.get_secret_value() == f"amqp://u:{SECRET}@h/v"  # type: ignore[attr-defined]
    assert received.parser is parser_of_a_user
    assert received.key is key_of_a_user


def test_settings_sent_through_a_pipe_keep_every_default(tmp_path: Path) -> None:
    settings = intake(tmp_path, source=OwnQueue(path=tmp_path, shelf="top"))
    received = load_intake(dump_intake(settings))
    assert type(received) is Intake
    assert received == settings
