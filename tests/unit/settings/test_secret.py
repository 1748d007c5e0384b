"""Secrets come from the environment or a literal, and are never shown."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ValidationError

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.settings.secret import Secret, unset_variables


class Holder(BaseModel):
    password: Secret


class LikeDagsterEnvVar(str):
    """A str with the variable's name in `env_var_name`, as Dagster's EnvVar is."""

    @property
    def env_var_name(self) -> str:
        return str(self)


@pytest.mark.parametrize("given", [{"env": "TEST_SECRET"}, LikeDagsterEnvVar("TEST_SECRET")])
def test_a_secret_is_read_from_the_environment(
    given: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SECRET", "hunter2")
    assert Holder(password=given).password.get_secret_value() == "hunter2"  # type: ignore[arg-type]


def test_dagster_env_var_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster as dg  # noqa: PLC0415 - the other tests here do without it

    monkeypatch.setenv("TEST_SECRET", "hunter2")
    holder = Holder(password=dg.EnvVar("TEST_SECRET"))  # type: ignore[arg-type]
    assert holder.password.get_secret_value() == "hunter2"


def test_a_variable_that_is_not_set_is_named_where_the_secret_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TEST_SECRET", raising=False)
    holder = Holder.model_validate({"password": {"env": "TEST_SECRET"}})
    assert list(unset_variables(holder)) == ["TEST_SECRET"]
    for shown in (repr(holder), str(holder.password), holder.model_dump_json()):
        assert "TEST_SECRET" in shown or "**********" in shown
    with pytest.raises(ConfigError, match="TEST_SECRET is not set"):
        holder.password.get_secret_value()
    assert holder == Holder.model_validate({"password": {"env": "TEST_SECRET"}})
    assert holder != Holder.model_validate({"password": {"env": "TEST_SECRET_2"}})


def test_a_secret_shows_in_no_repr_text_or_dump() -> None:
    holder = Holder.model_validate({"password": "hunter2"})
    shown = f"{holder!r} {holder} {holder.model_dump()} {holder.model_dump_json()}"
    assert "hunter2" not in shown
    assert "**********" in holder.model_dump_json()


def test_a_dump_for_a_worker_reveals_it_when_asked() -> None:
    holder = Holder.model_validate({"password": "hunter2"})
    dumped = holder.model_dump_json(context={"reveal_secrets": True})
    assert json.loads(dumped) == {"password": "hunter2"}
    assert Holder.model_validate_json(dumped) == holder


@pytest.mark.parametrize(
    "settings",
    [
        RabbitMQ(queue="q", user="me", password="hunter2"),  # type: ignore[arg-type]
        RabbitMQ(queue="q", url="amqp://me:hunter2@host/v"),  # type: ignore[arg-type]
        RedisState(url="redis://me:hunter2@host:6380/1"),  # type: ignore[arg-type]
    ],
)
def test_settings_describe_their_address_without_the_password(
    settings: RabbitMQ | RedisState,
) -> None:
    assert "hunter2" not in f"{settings!r} {settings} {settings.describe()} {settings.model_dump()}"
    assert "host" in settings.describe()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"url": "http://me:hunter2@host"}, "url"),
        ({"url": "amqp://me:hunter2@host:99999/"}, "url"),
        ({"url": "amqp://me:hunter2@host?heartbeat=5"}, "heartbeat_seconds"),
        ({"url": "amqp://me:hunter2@host", "vhost": "v"}, "vhost"),
        ({"url": "amqp://me:hunter2@host", "ca_file": "/ca.pem"}, "ca_file"),
        ({"password": "hunter2", "unknown": "x"}, "unknown"),
        ({"password": "hunter2", "queue_type": "stream"}, "queue_type"),
        ({"password": "hunter2", "queue": ""}, "queue"),
        ({"password": "hunter2", "port": 0}, "port"),
    ],
)
def test_a_wrong_rabbitmq_setting_is_named_and_no_secret_is_quoted(
    given: dict[str, object], named: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        RabbitMQ.model_validate({"queue": "q", **given})
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_rabbitmq_addresses_are_read_from_url_or_parts() -> None:
    by_url = RabbitMQ(queue="q", url="amqps://m%40e:p%2Fw@host/a%2Fb").address()  # type: ignore[arg-type]
    parts = RabbitMQ(queue="q", host="host", vhost="a/b", user="m@e", password="p/w", tls=True)  # type: ignore[arg-type]
    assert by_url == parts.address()
    assert (by_url.port, by_url.password, by_url.tls) == (5671, "p/w", True)
    default = RabbitMQ(queue="q").address()
    assert (default.host, default.port, default.vhost) == ("localhost", 5672, "/")
    assert RabbitMQ(queue="q", url="amqp://host").address().vhost == "/"  # type: ignore[arg-type]
