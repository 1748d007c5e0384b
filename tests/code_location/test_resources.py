"""Queue, state and object store are resources: they are shown, and others take their place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from pydantic import Field

from fuploader_dagster.assets.overrides import build_backend_resource, with_resources
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.settings import Settings
from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.definitions import build_definitions, build_resources
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.kafka.settings import Kafka
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.sources.redis_list.source import RedisList
from fuploader_dagster.resources.sources.redis_stream.source import RedisStream
from fuploader_dagster.resources.sources.sql.source import SqlTable
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.resources.states.sqlite import SqliteState
from fuploader_dagster.sensors.drain_sensor import build_drain_sensor
from fuploader_dagster.settings.pipeline import Pipeline
from tests.code_location.test_assets import Location
from tests.settings import pipeline, sealed

PAGE = Path(__file__).parents[2] / "docs" / "host-project.md"
REDIS = "redis://:a-secret@redis/0"
BACKENDS: list[Settings] = [
    RabbitMQ(queue="orders", url="amqp://somebody:a-secret@broker/"),
    RabbitMQ(queue="orders", host="broker", password="a-secret", port=5673),
    EmbeddedQueue(path=Path("queue")),
    SqlTable(url="mysql://somebody:a-secret@db/shop", table="orders", cursor="id"),
    RedisStream(url=REDIS, stream="orders"),
    RedisList(url=REDIS, key="orders"),
    Kafka(
        bootstrap_servers="a:9092",
        topic=["orders", "others"],
        group="g",
        user="somebody",
        sasl_mechanism="PLAIN",
        password="a-secret",
        tls=True,
    ),
    RedisState(url=REDIS, timeout_seconds=2),
    SqliteState(path=Path("state.sqlite")),
]


def shown(settings: Pipeline) -> dict[str, Any]:
    """What the UI is told of each resource."""
    repository = build_definitions(settings).get_repository_def()
    found = RepositorySnap.from_def(repository).resources
    assert found is not None
    return {one.name: one for one in found}


def test_the_ui_shows_the_resources_what_was_set_and_who_uses_them(tmp_path: Path) -> None:
    source = RabbitMQ(queue="orders", url="amqp://somebody:a-secret@broker/")
    resources = shown(pipeline(tmp_path, source=source, state=RedisState(url=REDIS)))
    assert set(resources) >= {"docs_store", "docs_archives", "docs_queue", "docs_state"}
    queue, state = resources["docs_queue"], resources["docs_state"]
    assert queue.configured_values == {"queue": '"orders"', "url": '"**********"'}
    assert queue.resource_type.endswith("RabbitMQ")
    assert "queue 'orders' on RabbitMQ" in queue.resource_snapshot.description
    assert "docs_drain" in queue.sensors_using
    assert {"docs_watch", "docs_recovery"} <= set(state.schedules_using)
    users = {one.job_name for one in queue.job_ops_using}
    assert {"docs_replay", "docs_dead_letters_requeue", "docs_pause"} <= users
    assert "a-secret" not in repr(resources)


@pytest.mark.parametrize("settings", BACKENDS, ids=lambda one: type(one).__name__)
def test_each_kind_is_a_resource_whose_value_is_the_settings_and_which_shows_no_secret(
    settings: Settings,
) -> None:
    resource = build_backend_resource(settings)
    default = json.loads(resource.config_schema.default_value_as_json_str)
    assert default.keys() == settings.model_fields_set
    assert "a-secret" not in json.dumps(default)

    @dg.op(required_resource_keys={"backend"})
    def look(context) -> None:  # type: ignore[no-untyped-def]
        given.append(context.resources.backend)

    @dg.job(resource_defs={"backend": resource})
    def job() -> None:
        look()

    given: list[Any] = []
    assert job.execute_in_process().success
    assert given == [settings]
    assert given[0] is settings


def test_the_config_of_a_run_changes_a_setting_and_keeps_the_secrets() -> None:
    url = "amqp://somebody:a-secret@broker/"
    resource = build_backend_resource(RabbitMQ(queue="orders", url=url))
    context = dg.build_init_resource_context(config={"queue": "others", "url": "**********"})
    changed = resource(context)
    assert changed == RabbitMQ(queue="others", url=url)
    wrong = dg.build_init_resource_context(config={"queue": "", "url": "**********"})
    with pytest.raises(
        ConfigError, match=r"queue must be a name of 1 to 255 bytes.*\(the resource"
    ):
        resource(wrong)


class OwnQueue(SourceSettings):
    """Somebody's own, whose address is no `Secret`, and with a field that is never dumped."""

    address: str
    cache: str = Field("", exclude=True)

    def describe(self) -> str:
        return "an own queue"


def test_a_login_in_an_address_of_ones_own_queue_is_not_shown() -> None:
    settings = OwnQueue(address="own://somebody:a-secret@host/q", cache="x")
    resource = build_backend_resource(settings)
    default = json.loads(resource.config_schema.default_value_as_json_str)
    assert default == {"address": "own://***@host/q", "cache": None}
    assert resource(dg.build_init_resource_context(config=default)) is settings


def test_a_secret_that_is_not_set_yet_shows_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RABBITMQ_URL", raising=False)
    resource = build_backend_resource(RabbitMQ(queue="orders", url={"env": "RABBITMQ_URL"}))
    default = json.loads(resource.config_schema.default_value_as_json_str)
    assert default == {"queue": "orders", "url": "${RABBITMQ_URL}"}


def test_a_job_publishes_to_the_queue_that_it_is_given_as_on_the_page(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))  # whose own queue does not answer
    key = sealed(location.settings, {"a.json": b"1", "b.json": b"2"}).seal.partition
    assert location.ship([key]).success
    found: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    (block,) = [one for one in blocks if "def replayed_into(" in one]
    exec(block.replace("documents_", "docs_"), found)
    other = EmbeddedQueue(path=tmp_path / "other")
    run = found["replayed_into"](other.path, location.definitions, location.instance, key)
    assert run.success
    publisher = other.publisher()
    assert publisher.backlog() == 2
    publisher.close()


def test_the_drain_sensor_takes_sealed_slots_from_the_state_store_that_it_is_given(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, drain_by="command")
    other = SqliteState(path=tmp_path / "other.sqlite")
    key = sealed(settings, {"a": b"a"}).seal.partition
    state = other.store(pipeline=settings.name, node=settings.node)
    state.open()
    state.add_sealed([key])
    state.close()
    sensor = build_drain_sensor(settings)

    def registered(**resources: Any) -> list[str]:
        own = build_resources(settings)
        context = dg.build_sensor_context(
            instance=dg.DagsterInstance.ephemeral(), resources={**own, **resources}
        )
        result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        return [
            key for one in result.dynamic_partitions_requests or () for key in one.partition_keys
        ]

    assert registered() == []
    assert registered(docs_state=other) == [key]


class _Context:
    def __init__(self, **resources: Any) -> None:
        self.resources = dg.build_resources(resources).__enter__()


def test_without_another_one_the_pipeline_is_the_same_object(tmp_path: Path) -> None:
    """The drain sensor replaces its workers when their settings are others."""
    settings = pipeline(tmp_path)
    assert with_resources(settings, _Context(**build_resources(settings))) is settings
    assert with_resources(settings, _Context()) is settings
    other = EmbeddedQueue(path=tmp_path / "other")
    changed = with_resources(settings, _Context(docs_queue=other))
    assert changed == settings.model_copy(update={"source": other})


@pytest.mark.parametrize(
    ("key", "wrong", "said"),
    [
        ("docs_queue", "orders", "the resource docs_queue is a str, which is not a queue (give it"),
        (
            "docs_queue",
            SqliteState(path=Path("s")),
            "docs_queue is a SqliteState, which is not a q",
        ),
        (
            "docs_state",
            EmbeddedQueue(path=Path("q")),
            "docs_state is an EmbeddedQueue, which is no",
        ),
    ],
)
def test_a_queue_or_state_store_of_a_wrong_class_is_refused_with_a_hint(
    tmp_path: Path, key: str, wrong: Any, said: str
) -> None:
    location = Location(pipeline(tmp_path))
    name = Names.of(location.settings).replay_job
    result = location.definitions.resolve_job_def(name).execute_in_process(
        instance=location.instance, resources={key: wrong}, raise_on_error=False
    )
    assert not result.success
    errors = [one.step_failure_data.error for one in result.all_events if one.is_step_failure]
    assert said in str(errors[0])


def test_an_object_store_of_a_wrong_class_is_refused_and_the_slots_stay(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    key = sealed(location.settings, {"a.json": b"1"}).seal.partition
    location.instance.add_dynamic_partitions(location.names.partition_set, [key])
    result = location.definitions.resolve_job_def(location.names.ship_job).execute_in_process(
        instance=location.instance,
        partition_key=key,
        resources={"docs_store": EmbeddedQueue(path=tmp_path / "q")},
        raise_on_error=False,
    )
    assert not result.success
    entries = location.instance.all_logs(result.run_id)
    errors = [str(one.dagster_event.event_specific_data) for one in entries if one.dagster_event]
    wanted = "the resource docs_store is an EmbeddedQueue, which is not an object store (give it"
    assert any(wanted in one for one in errors)
    assert location.ship([key]).success  # nothing was lost
