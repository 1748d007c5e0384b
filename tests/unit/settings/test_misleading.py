"""A configuration cannot mislead: what it seems to say is what it means, or an error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from fuploader_dagster import Pipeline, build_definitions
from fuploader_dagster.component import read_components
from fuploader_dagster.contracts.settings import Settings
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.health.doctor import examine
from fuploader_dagster.resources.object_stores.local import LocalSettings
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.states.sqlite import SqliteState
from fuploader_dagster.settings.loading import dump_intake, load_pipelines
from fuploader_dagster.settings.secret import unset_variables

UNSET: dict[str, str] = {"env": "FUPLOADER_TEST_IS_NOT_SET"}
NAMED = "environment variable FUPLOADER_TEST_IS_NOT_SET is not set"


def embedded(**changes: Any) -> dict[str, Any]:
    return {
        "source": {"kind": "embedded", "path": "data/queue"},
        "state": {"kind": "sqlite", "path": "data/state.sqlite"},
        "store": {"kind": "local", "path": "data/objects"},
        **changes,
    }


def written(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fuploader.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def one(folder: Path, **changes: Any) -> Pipeline:
    return load_pipelines(written(folder, {"pipelines": {"docs": embedded(**changes)}}))["docs"]


def complaint(folder: Path, content: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_pipelines(written(folder, content))
    return str(caught.value)


def test_relative_paths_are_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    project = (tmp_path / "project").resolve()
    loaded = one(project)
    assert loaded.storage_root == project / "data"
    assert isinstance(loaded.source, EmbeddedQueue)
    assert loaded.source.path == project / "data/queue"
    assert isinstance(loaded.state, SqliteState)
    assert loaded.state.path == project / "data/state.sqlite"
    assert isinstance(loaded.store, LocalSettings)
    assert Path(loaded.store.path) == project / "data/objects"
    files = {"ca_file": "certs/ca.pem", "cert_file": "/etc/cert.pem"}
    queue = {"kind": "rabbitmq", "queue": "q", "tls": True, **files}
    source = one(project, source=queue, takeover={"root": "old"})
    assert source.source.ca_file == project / "certs/ca.pem"  # type: ignore[attr-defined]
    assert source.source.cert_file == Path("/etc/cert.pem")  # type: ignore[attr-defined]
    assert source.takeover.root == project / "old"
    rows = {"kind": "sql", "url": "sqlite:///rows.sqlite?timeout=5", "table": "t"}
    with_rows = one(project, source={**rows, "cursor": "id"}, sinks={"rows": rows})
    place = f"sqlite:///{project}/rows.sqlite"
    assert with_rows.source.describe().endswith(place)
    assert with_rows.sinks["rows"].describe().endswith(place)
    assert with_rows.sinks["rows"].url.get_secret_value() == f"{place}?timeout=5"  # type: ignore[attr-defined]


def test_from_its_own_folder_paths_stay_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert one(tmp_path).storage_root == Path("data")


def test_data_that_an_earlier_version_put_into_the_working_folder_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, project = tmp_path / "here", tmp_path / "project"
    (here / "data" / "docs").mkdir(parents=True)
    monkeypatch.chdir(here)
    said = complaint(project, {"pipelines": {"docs": embedded()}})
    assert f"the data of pipeline docs is in {here / 'data/docs'}" in said
    (project / "data" / "docs").mkdir(parents=True)
    assert one(project).storage_root == project.resolve() / "data"


def test_data_of_the_project_that_a_person_stands_in_is_not_taken_for_another_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "data" / "docs").mkdir(parents=True)
    written(here, {"pipelines": {"docs": embedded()}})
    monkeypatch.chdir(here)
    assert one(tmp_path / "project").storage_root == (tmp_path / "project").resolve() / "data"


@pytest.mark.parametrize(
    ("changes", "place", "name"),
    [
        ({"store": {"kind": "s3", "bucket": "${BUCKET}"}}, "store.bucket", "BUCKET"),
        ({"source": {"kind": "sql", "url": "$DB_URL"}}, "source.url", "DB_URL"),
        ({"source": {"kind": "kafka", "topic": "a-${STAGE:-dev}"}}, "source.topic", "STAGE"),
        ({"headers": ["a", "${HEADER}"]}, "headers.1", "HEADER"),
    ],
)
def test_a_variable_as_in_a_shell_is_refused_with_the_right_form(
    tmp_path: Path, changes: dict[str, Any], place: str, name: str
) -> None:
    said = complaint(tmp_path, {"pipelines": {"docs": embedded(**changes)}})
    assert f"pipelines.docs.{place} has ${{{name}}}, which nothing fills in" in said
    assert f"write {{env: {name}}}" in said
    assert "FUPLOADER_PIPELINES__DOCS__" + place.upper().replace(".", "__") in said


@pytest.mark.parametrize("key", ["{pipeline}/{archive}", "cost$/{archive}", "$5/{archive}"])
def test_a_dollar_alone_is_a_letter_like_others(tmp_path: Path, key: str) -> None:
    assert one(tmp_path, key=key).key == key


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("pipelines:\n  docs:\n    seal_messages: 1\n    seal_messages: 2\n", 4),
        ("pipelines:\n  docs: {}\n  other: {}\n  docs: {}\n", 4),
        ("storage_root: a\npipelines: {}\nstorage_root: b\n", 3),
        ("pipelines: {docs: {store: {kind: local, path: a, path: b}}}\n", 1),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, content: str, line: int) -> None:
    said = complaint(tmp_path, content)
    assert f"the key in line {line}, " in said
    assert "already there" in said


def test_a_value_over_a_merged_mapping_is_no_key_twice(tmp_path: Path) -> None:
    shared = yaml.safe_dump(embedded(), default_flow_style=True).strip()
    text = "x: &x {seal_messages: 5}\npipelines:\n  docs:\n    <<: *x\n    seal_messages: 7\n"
    text += "".join(f"    {line}\n" for line in yaml.safe_dump(embedded()).splitlines())
    assert shared
    with pytest.raises(ConfigError, match="x: there is no such setting"):
        load_pipelines(written(tmp_path, text))


def test_pipelines_that_take_from_each_other_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = {"a": embedded(key="x/{archive}"), "b": embedded(key="x/{archive}")}
    with caplog.at_level(logging.WARNING):
        assert len(load_pipelines(written(tmp_path, {"pipelines": same}))) == 2
    assert "pipelines a and b drain the same queue" in caplog.text
    assert "pipelines a and b store archives under the same keys" in caplog.text
    caplog.clear()
    apart = {
        "a": embedded(),
        "b": embedded(source={"kind": "embedded", "path": "data/other"}),
    }
    load_pipelines(written(tmp_path, {"pipelines": apart}))
    assert caplog.text == ""


COMPONENT = {
    "type": "fuploader_dagster.QueueToObjectStore",
    "attributes": {"name": "docs", **embedded()},
}


@pytest.mark.parametrize(
    "text", ["{{ env.FUPLOADER_TEST_IS_NOT_SET }}", "amqp://{{ env.FUPLOADER_TEST_IS_NOT_SET }}/"]
)
def test_a_template_that_gives_nothing_is_an_error_and_not_the_default(text: str) -> None:
    source = {"kind": "rabbitmq", "queue": text, "url": text}
    document = {**COMPONENT, "attributes": {**COMPONENT["attributes"], "source": source}}  # type: ignore[dict-item]
    found, wrong = read_components([document, COMPONENT], where="defs.yaml")
    assert found.keys() == wrong.keys() == {"docs"}
    said = str(wrong["docs"])
    assert "defs.yaml: source.queue: the template {{ env.FUPLOADER_TEST_IS_NOT_SET }}" in said
    assert "defs.yaml: source.url: the template {{ env.FUPLOADER_TEST_IS_NOT_SET }}" in said
    assert "gives nothing" in said


def test_a_component_takes_paths_from_the_folder_of_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path.resolve() / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = project / "src" / "app" / "defs" / "docs" / "defs.yaml"
    file.parent.mkdir(parents=True)
    (project / "pyproject.toml").write_text("")
    file.write_text(yaml.safe_dump(COMPONENT))
    monkeypatch.chdir(elsewhere)
    assert load_pipelines(file)["docs"].storage_root == project / "data"


WITHOUT_SECRETS: dict[str, dict[str, Any]] = {
    "rabbitmq": {"source": {"kind": "rabbitmq", "queue": "q", "url": UNSET, "ca_file": "x"}},
    "password": {"source": {"kind": "rabbitmq", "queue": "q", "password": UNSET}},
    "stream": {"source": {"kind": "redis_stream", "url": UNSET, "stream": "s"}},
    "list": {"source": {"kind": "redis_list", "url": UNSET, "key": "s"}},
    "sql": {"source": {"kind": "sql", "url": UNSET, "table": "t", "cursor": ["id"]}},
    "state": {"state": {"kind": "redis", "url": UNSET}, "alert_webhook": UNSET},
    "sinks": {
        "sinks": {
            "s": {"kind": "sql", "url": UNSET, "table": "t", "rows": "json:loads", "key": ["a"]},
            "c": {"kind": "clickhouse", "url": UNSET, "table": "t", "rows": "json:loads"},
            "r": {"kind": "redis_stream", "url": UNSET, "stream": "x", "rows": "json:loads"},
        },
        "process": {"kind": "http", "url": "http://h/x", "headers": {"Authorization": UNSET}},
    },
    "notices": {
        "process": {"kind": "fetch", "proxy": UNSET, "headers": {"h": {"X-Key": UNSET}}},
        "seal_each": "message",
        "notify": [
            {"kind": "webhook", "url": UNSET, "secret": UNSET},
            {"kind": "redis_list", "url": UNSET, "key": "r_{x}"},
        ],
    },
}


@pytest.mark.parametrize("name", WITHOUT_SECRETS)
def test_a_configuration_can_be_checked_where_its_secrets_are_not(
    tmp_path: Path, name: str
) -> None:
    """It loads, says its addresses, and Dagster's definitions can be built; what uses it cannot."""
    loaded = one(tmp_path, **WITHOUT_SECRETS[name])
    assert set(unset_variables(loaded)) == {"FUPLOADER_TEST_IS_NOT_SET"}
    build_definitions(loaded).resolve_all_asset_specs()
    said = f"{loaded!r} {loaded.source.describe()} {loaded.state.describe()}"
    said += "".join(one.describe() for one in loaded.sinks.values())
    said += "".join(one.describe() for one in loaded.notify)
    assert "FUPLOADER_TEST_IS_NOT_SET" in said
    (found,) = examine(loaded)
    assert (found.verdict, found.found) == ("wrong", NAMED)
    if set(unset_variables(loaded.intake())):
        with pytest.raises(ConfigError, match=NAMED):
            dump_intake(loaded.intake())


def test_a_state_store_without_its_secret_says_which(tmp_path: Path) -> None:
    loaded = one(tmp_path, state={"kind": "redis", "url": UNSET})
    with pytest.raises(ConfigError, match=NAMED):
        loaded.state.store(pipeline="docs", node="local").open()


def test_no_validator_takes_the_place_of_one_that_was_inherited() -> None:
    """By its name alone it would, and be called for the fields of both."""
    classes = [Settings]
    for one in classes:
        classes += one.__subclasses__()
        bases = [base for base in one.__mro__[1:] if issubclass(base, BaseModel)]
        inherited = {
            name for base in bases for name in base.__pydantic_decorators__.field_validators
        }
        assert not inherited & vars(one).keys(), one
    assert LocalSettings in classes
