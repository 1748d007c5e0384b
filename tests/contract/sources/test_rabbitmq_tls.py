"""A broker that asks its clients for a certificate: with one, without, with one of a stranger."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuploader_dagster.errors import FuploaderError, SourceRefused
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from tests.contract.sources.rabbitmq_sources import collect
from tests.servers.process import binary
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.certificate, self._key = folder / "ca.pem", folder / "ca-key.pem"
        self._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca"),
            *("-keyout", self._key, "-out", self.certificate),
        )

    def client(self, name: str) -> tuple[Path, Path]:
        """A client's certificate and key."""
        certificate, key, request = (
            self.folder / f"{name}{kind}" for kind in (".pem", "-key.pem", ".csr")
        )
        self._openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", key, "-out", request),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key),
            *("-CAcreateserial", "-days", "2", "-out", certificate),
        )
        return certificate, key

    def _openssl(self, *arguments: object) -> None:
        command = [binary("openssl", package="openssl"), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ours")


@pytest.fixture(scope="module")
def broker(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[RabbitMQServer]:
    """It lets in only clients with a certificate of the authority."""
    server = RabbitMQServer(tmp_path_factory.mktemp("rabbitmq-mutual"))
    file = server.folder / "rabbitmq.conf"
    lines = [line for line in file.read_text().splitlines() if "cacertfile" not in line]
    lines += [
        f"ssl_options.cacertfile = {authority.certificate}",
        "ssl_options.verify = verify_peer",
        "ssl_options.fail_if_no_peer_cert = true",
    ]
    file.write_text("\n".join(lines) + "\n")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def settings(broker: RabbitMQServer) -> Callable[..., RabbitMQ]:
    def make(**others: object) -> RabbitMQ:
        url = broker.url.replace("amqp:", "amqps:").replace(str(broker.port), str(broker.tls_port))
        given = {"url": url, "queue": "mutual", "ca_file": broker.ca_file, **others}
        return RabbitMQ.model_validate(given)

    return make


def test_with_a_certificate_of_ours_messages_flow(
    broker: RabbitMQServer,
    authority: Authority,
    settings: Callable[..., RabbitMQ],
    tmp_path: Path,
) -> None:
    certificate, key = authority.client("drain")
    together = tmp_path / "together.pem"
    together.write_text(certificate.read_text() + key.read_text())
    for files in ({"cert_file": certificate, "key_file": key}, {"cert_file": together}):
        ours = settings(queue=new_queue(broker), **files)
        publisher, source = ours.publisher(), ours.source(prefetch=10)
        publisher.publish([(b"x" * 100_000, {}), (b"y", {})])
        source.open()
        assert [len(message.body) for message in collect(source, 2)] == [100_000, 1]
        source.close()
        publisher.close()


def test_more_than_the_connection_takes_at_once_arrives_whole_and_in_order(
    broker: RabbitMQServer, authority: Authority, settings: Callable[..., RabbitMQ]
) -> None:
    """TLS takes the same piece again when it could not send all of it."""
    certificate, key = authority.client("publish")
    ours = settings(queue=new_queue(broker), cert_file=certificate, key_file=key)
    sizes = [*[50_000] * 100, 3_000_000, *[100] * 300, 5_000_000]
    sent = [b"%d," % number + b"x" * size for number, size in enumerate(sizes)]
    publisher, source = ours.publisher(), ours.source(prefetch=len(sent))
    assert publisher.publish((body, {}) for body in sent) == len(sent)
    source.open()
    assert [message.body for message in collect(source, len(sent))] == sent
    source.close()
    publisher.close()


def test_without_a_certificate_the_error_says_which_settings_are_missing(
    settings: Callable[..., RabbitMQ],
) -> None:
    with pytest.raises(FuploaderError, match="set cert_file and key_file"):
        settings().source(prefetch=1).open()


def test_a_certificate_that_the_broker_does_not_trust_is_said(
    settings: Callable[..., RabbitMQ], tmp_path: Path
) -> None:
    certificate, key = Authority(tmp_path / "strangers").client("stranger")
    with pytest.raises(FuploaderError, match="that the broker trusts"):
        settings(cert_file=certificate, key_file=key).source(prefetch=1).open()


def test_files_that_are_no_certificate_or_not_its_key_are_named(
    settings: Callable[..., RabbitMQ], authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.client("named")
    _, anothers = authority.client("another")
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", key, "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    for files in (
        {"cert_file": tmp_path / "missing.pem"},
        {"cert_file": certificate},
        {"cert_file": certificate, "key_file": anothers},
        {"cert_file": certificate, "key_file": locked},
    ):
        with pytest.raises(SourceRefused, match="cert_file") as caught:
            settings(**files).source(prefetch=1).open()
        assert str(files["cert_file"]) in str(caught.value)


def test_a_key_alone_or_a_certificate_without_tls_is_refused_at_load() -> None:
    with pytest.raises(ValueError, match="cert_file that it belongs to"):
        RabbitMQ(queue="q", tls=True, key_file=Path("key.pem"))
    with pytest.raises(ValueError, match="cert_file is set, but neither"):
        RabbitMQ(queue="q", cert_file=Path("cert.pem"))
