"""Logins with SASL: who may read and publish, and what is said of a password that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.errors import SourceRefused
from fuploader_dagster.resources.sources.kafka.settings import Kafka
from fuploader_dagster.testing.source_steps import bodies_of, collect, settle
from tests.servers.kafka import kafka_settings, running, tansu
from tests.servers.kafka_login import KafkaLogin
from tests.servers.odd_server import make_certificate
from tests.servers.ports import LOOPBACK, answers

RIGHT, WRONG = "right-and-secret", "wrong-and-secret"
MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
CHECK = "check user, password and sasl_mechanism"


@contextmanager
def logging_in(folder: Path, **values: Any) -> Iterator[tuple[KafkaLogin, Callable[..., Kafka]]]:
    """A broker behind a login, and settings of it."""
    server = tansu(folder / "tansu")
    with KafkaLogin(server.port, user="drain", password=RIGHT, **values) as login:
        server.advertised = login.port

        def settings(mechanism: str, password: str = RIGHT, **more: Any) -> Kafka:
            return kafka_settings(
                f"{LOOPBACK}:{login.port}",
                f"topic-{mechanism}",
                declare=True,
                timeout_seconds=5,
                **{"sasl_mechanism": mechanism, "user": "drain", "password": password, **more},
            )

        with running(server, ready=lambda: answers(server.port)):
            yield login, settings


def test_who_logs_in_publishes_reads_and_settles(tmp_path: Path) -> None:
    with logging_in(tmp_path) as (login, settings):
        for mechanism in MECHANISMS:
            kafka = settings(mechanism)
            publisher = kafka.publisher()
            publisher.publish([(b"x", {})])
            publisher.close()
            source = kafka.source(prefetch=10)
            source.open()
            messages = collect(source, 1)
            settle(source, messages)
            source.close()
            assert bodies_of(messages) == [b"x"]
            assert [one.verdict for one in kafka.examine() if one.check == "queue"] == ["good"]
        assert set(login.logins) == {(mechanism, True) for mechanism in MECHANISMS}


@pytest.mark.parametrize("more", [{"password": WRONG}, {"user": "stranger"}], ids=["pass", "user"])
def test_a_wrong_login_is_refused_in_a_sentence_and_no_password_is_shown(
    tmp_path: Path, more: dict[str, str], caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    with logging_in(tmp_path) as (login, settings):
        for mechanism in MECHANISMS:
            kafka = settings(mechanism, **more)
            for tried in (
                kafka.source(prefetch=1).open,
                kafka.publisher().backlog,
                lambda: kafka.publisher().publish([(b"x", {})]),  # noqa: B023
                lambda: list(kafka.examine()),  # noqa: B023
            ):
                with pytest.raises(SourceRefused, match=CHECK) as refused:
                    tried()
                assert "secret" not in str(refused.value)
            assert "secret" not in repr(kafka) + str(kafka) + str(kafka.model_dump())
        assert set(login.logins) == {(mechanism, False) for mechanism in MECHANISMS}
    assert "secret" not in caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_mechanism_that_the_broker_does_not_have_is_said(tmp_path: Path) -> None:
    only = ("SCRAM-SHA-512",)
    refused = pytest.raises(SourceRefused, match="sasl_mechanism")
    with logging_in(tmp_path, mechanisms=only) as (_, settings), refused:
        settings("PLAIN").source(prefetch=1).open()


def test_a_broker_that_knows_nobody_refuses_in_a_sentence(tmp_path: Path) -> None:
    """Tansu's own login."""
    server = tansu(tmp_path, more=("--authentication",))
    with running(server, ready=lambda: answers(server.port)):
        for mechanism in MECHANISMS[1:]:
            kafka = kafka_settings(
                server.bootstrap, "any", sasl_mechanism=mechanism, user="drain", password=RIGHT
            )
            with pytest.raises(SourceRefused, match=CHECK):
                kafka.source(prefetch=1).open()


def test_a_login_within_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with logging_in(tmp_path, certificate=certificate) as (login, settings):
        kafka = settings("PLAIN", tls=True, ca_file=certificate)
        publisher = kafka.publisher()
        assert publisher.publish([(b"x", {})]) == 1
        publisher.close()
        assert ("PLAIN", True) in login.logins
