"""Connecting to RabbitMQ, and what its errors mean to the person on call.

One place decides which of pika's errors may pass (`SourceUnavailable`) and which need a person
(`SourceRefused`); source and publisher share it. pika sometimes guesses: it calls a connection lost
during login a "probable authentication error". Only the broker's own reply code counts.
"""

from __future__ import annotations

import errno
import logging
import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import pika
from pika import exceptions
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from fuploader_dagster.errors import FuploaderError, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.rabbitmq.pika_internals import (
    end_unless_answered,
    server_version,
    warn_if_untested,
)

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ

# pika logs a traceback for each failed connection; our errors say the same in one sentence.
logging.getLogger("pika").setLevel(logging.CRITICAL)

PIKA_ERRORS = (exceptions.AMQPError, AMQPConnectorException, OSError)
"""Everything that pika raises when the broker or the network is the cause."""

GOODBYE_SECONDS = 1.0
_NOT_FOUND, _PRECONDITION_FAILED = 404, 406
_LIMITED_SINCE, _NO_LIMIT = 4, -1
_STREAM = "rabbit_stream_queue"
_EXCLUSIVE = "in exclusive use"
_CERTIFICATE_REFUSED = re.compile(
    "alert[ _](certificate|bad[ _]certificate|unknown[ _]ca|handshake[ _]failure)", re.IGNORECASE
)
_REFUSALS = {
    402: "check the queue's limits at the broker",
    403: "check user, password and the user's permissions",
    404: "create the queue, correct its name, or set declare: true",
    405: "the queue is exclusive to another connection: use a shared one",
    406: "check the broker's log: the queue or the message breaks one of its limits",
    530: "check the vhost and the user's access to it",
}


@dataclass(frozen=True)
class Address:
    """Address of the broker, and our login."""

    host: str
    port: int
    vhost: str
    user: str
    password: str = field(repr=False)
    tls: bool

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        return f"{scheme}://{self.user}@{self.host}:{self.port}, vhost {self.vhost}"


def connect(settings: RabbitMQ, purpose: str) -> tuple[pika.BlockingConnection, BlockingChannel]:
    """A connection and a channel, after a check that the queue exists.

    The broker's list of connections shows `purpose`.
    """
    connection = open_connection(settings, purpose)
    try:
        return connection, _channel_with_queue(settings, connection)
    except PIKA_ERRORS as error:
        raise explained("look up", settings, error) from error
    except BaseException:
        disconnect(connection)
        raise


def open_connection(settings: RabbitMQ, purpose: str) -> pika.BlockingConnection:
    """A connection, without a look at the queue."""
    warn_if_untested()
    try:
        return pika.BlockingConnection(_parameters(settings, purpose))
    except PIKA_ERRORS as error:
        raise explained("connect to", settings, error) from error


def disconnect(connection: pika.BlockingConnection | None) -> None:
    """Close the connection if it is still open. Never raises.

    pika would wait for the broker's answer until the heartbeat gives up on it, a minute by default.
    If the broker hangs, we leave after `GOODBYE_SECONDS`; it still takes its messages back.
    """
    if connection is not None and connection.is_open:
        with suppress(*PIKA_ERRORS):
            end_unless_answered(connection, GOODBYE_SECONDS)
            connection.close()


def explained(tried: str, settings: RabbitMQ, error: BaseException) -> FuploaderError:
    """Our error for one of pika's: what it means, and what to do."""
    reason = _reason(error)
    what = f"could not {tried} {settings.describe()}: {reason}"
    code = _reply_code(error)
    if code in _REFUSALS and not _may_pass(code, reason):
        return SourceRefused(what, hint=_refusal_hint(code, reason))
    if _CERTIFICATE_REFUSED.search(reason):
        return SourceRefused(what, hint=_certificate_hint(settings))
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceRefused(what, hint="set ca_file to the certificate that signed the broker's")
    return SourceUnavailable(what, hint=_hint(settings, error))


class Explaining(ABC):
    """A source or a publisher: what pika raises ends its connection, and is explained."""

    _settings: RabbitMQ

    @abstractmethod
    def close(self) -> None: ...

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except PIKA_ERRORS as error:
            self._give_up(what, error)

    def _give_up(self, tried: str, error: BaseException) -> NoReturn:
        self.close()
        raise explained(tried, self._settings, error) from error


def _parameters(settings: RabbitMQ, purpose: str) -> pika.ConnectionParameters:
    address = settings.address()
    options = None
    if address.tls:
        options = pika.SSLOptions(_tls_context(settings), address.host)
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.user, address.password),
        ssl_options=options,
        heartbeat=settings.heartbeat_seconds,
        socket_timeout=settings.connect_timeout_seconds,
        stack_timeout=settings.connect_timeout_seconds,
        blocked_connection_timeout=settings.blocked_timeout_seconds,
        client_properties={"connection_name": f"fuploader {purpose} {settings.queue}"},
    )


def _tls_context(settings: RabbitMQ) -> ssl.SSLContext:
    """The certificates that we trust, and our own."""
    ca_file, cert_file, key_file = settings.ca_file, settings.cert_file, settings.key_file
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        raise SourceRefused(
            f"could not read ca_file {ca_file} for {settings.describe()}: {error}",
            hint="it must be a readable file of PEM certificates",
        ) from error
    if cert_file is not None:
        try:  # without a password argument OpenSSL would ask for one on the terminal
            context.load_cert_chain(cert_file, key_file, password="")
        except OSError as error:
            raise SourceRefused(
                f"could not read cert_file {cert_file} and its key {key_file or cert_file} for "
                f"{settings.describe()}: {error}",
                hint="both must be readable PEM files that belong together, the key without a "
                "password",
            ) from error
    return context


def declared_arguments(queue_type: str, version: str) -> dict[str, object]:
    """Arguments of a queue that we declare on a broker of this version.

    Since 4.0 a quorum queue drops a message after 20 deliveries by default, and each worker that
    dies is one delivery of every message it held. -1 is no limit; 3.x has no limit, and takes -1
    for one that every message exceeds.
    """
    arguments: dict[str, object] = {"x-queue-type": queue_type}
    major = version.partition(".")[0]
    if queue_type == "quorum" and major.isdecimal() and int(major) >= _LIMITED_SINCE:
        arguments["x-delivery-limit"] = _NO_LIMIT
    return arguments


def _channel_with_queue(settings: RabbitMQ, connection: pika.BlockingConnection) -> BlockingChannel:
    channel = connection.channel()
    try:
        channel.queue_declare(settings.queue, passive=True)
    except exceptions.ChannelClosedByBroker as error:
        missing = error.reply_code == _NOT_FOUND and not _may_pass(_NOT_FOUND, error.reply_text)
        if not (missing and settings.declare):
            raise
        channel = connection.channel()  # the broker closed the first one with its answer
        arguments = declared_arguments(settings.queue_type, server_version(connection))
        channel.queue_declare(settings.queue, durable=True, arguments=arguments)
    return channel


def _reply_code(error: BaseException) -> int | None:
    """The broker's own answer, if there was one."""
    if isinstance(error, (exceptions.ChannelClosedByBroker, exceptions.ConnectionClosedByBroker)):
        return int(error.reply_code)
    if isinstance(
        error, (exceptions.ProbableAuthenticationError, exceptions.ProbableAccessDeniedError)
    ):
        # pika keeps the broker's answer only as the text of another exception
        return next((code for code in (403, 530) if f"({code})" in str(error)), None)
    return None


def _may_pass(code: int, reason: str) -> bool:
    """Whether the broker's refusal goes away by itself."""
    return (
        (code == 404 and "home node" in reason)  # the node of the cluster with the queue is down
        or (code == 406 and "timed out" in reason)  # we held messages longer than it allows
        or (code == 530 and "limit" in reason)  # too many connections at the moment
    )


def _refusal_hint(code: int, reason: str) -> str:
    if _EXCLUSIVE in reason:
        return "another consumer uses the queue exclusively: stop it, or make it not exclusive"
    if _STREAM in reason:
        return (
            "it is a stream, which keeps acknowledged messages and delivers only new ones: use a "
            "classic or quorum queue, bound to the same exchange"
        )
    return _REFUSALS[code]


def _certificate_hint(settings: RabbitMQ) -> str:
    if settings.cert_file is None:
        return "if the broker asks its clients for a certificate, set cert_file and key_file"
    return "is cert_file signed by an authority that the broker trusts? its log has the reason"


def _reason(error: BaseException) -> str:
    if isinstance(error, (exceptions.ChannelClosedByBroker, exceptions.ConnectionClosedByBroker)):
        return f"{error.reply_code} {error.reply_text}"
    if type(error) is exceptions.AMQPConnectionError and error.args:  # a wrapper around the cause
        inner = error.args[0]
        return str(getattr(inner, "exception", inner))
    if isinstance(error, exceptions.AMQPError) and error.args:
        return f"{type(error).__name__}: {error.args[0]}"
    return str(error) or type(error).__name__


def _hint(settings: RabbitMQ, error: BaseException) -> str:
    if isinstance(error, exceptions.ConnectionBlockedTimeout):
        return "the broker blocks publishers: check it for a memory or disk alarm"
    if isinstance(error, exceptions.AMQPHeartbeatTimeout):
        return "nothing came for two heartbeats: is the broker or the network stuck?"
    if isinstance(error, (ssl.SSLError, exceptions.IncompatibleProtocolError)):
        hint = "do the port and the tls setting (amqp:// or amqps://) belong together?"
        if settings.address().tls:  # the broker's words about our certificate may get lost
            return f"{hint} {_certificate_hint(settings)}"
        return hint
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "this process cannot open more files: raise `ulimit -n` (LimitNOFILE= of a service)"
    return "is the broker running, and can this machine reach it?"
