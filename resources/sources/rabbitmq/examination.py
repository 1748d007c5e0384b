"""A look at a RabbitMQ queue for `fuploader doctor`: nothing is consumed, nothing declared.

AMQP has no question for a queue's type and arguments. But the broker compares them when an
existing queue is declared, and refuses with the first that differs, naming its value. So, once the
queue is known to exist, it is declared as a plain one, and each answer is put into the next
declaration until the broker agrees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pika
from pika.exceptions import ChannelClosedByBroker

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.resources.sources.rabbitmq.connection import (
    PIKA_ERRORS,
    disconnect,
    explained,
    open_connection,
)
from fuploader_dagster.resources.sources.rabbitmq.pika_internals import server_version

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ

_NOT_FOUND, _ACCESS_REFUSED, _PRECONDITION_FAILED = 404, 403, 406
_DIFFERS = re.compile(
    r"inequivalent arg '(?P<name>[^']+)'.* but current is (?:the value )?'(?P<value>[^']*)'"
)
_MOST_ARGUMENTS = 12
_LOSES = {
    "x-message-ttl": "messages that wait longer than this many ms are removed by the broker",
    "x-expires": "the queue is removed with all its messages when unused for this many ms",
    "x-max-length": "the broker drops or refuses messages beyond this number",
    "x-max-length-bytes": "the broker drops or refuses messages beyond this size",
    "auto_delete": "the queue is removed with its last consumer",
}
"""What takes messages away from us before they were drained."""
_DELIVERY_LIMIT = "x-delivery-limit"
ENOUGH_DELIVERIES = 20
"""Each worker that dies is one delivery of all that it held, and to find the message that kills
workers among `prefetch_count` others takes log2(prefetch_count) + max_deliveries + 1 of them: 16
with the defaults. Some are for machines that are switched off."""


def examine(settings: RabbitMQ) -> Iterator[Diagnosis]:
    """Connection, queue, its type and arguments. Raises errors of ours for what is in the way."""
    connection = open_connection(settings, "doctor")
    try:
        where = f"RabbitMQ {server_version(connection)} at {settings.address()}"
        yield Diagnosis("broker", "good", f"{where} lets us in")
        answer = _look(settings, connection)
        if answer is None:
            yield _missing(settings)
            return
        waiting, consumers = answer.method.message_count, answer.method.consumer_count
        yield Diagnosis(
            "queue",
            "good",
            f"{settings.queue!r} is there: {waiting:,} messages wait, {consumers} consumers",
        )
        yield judge(settings, _arguments(settings, connection))
    except PIKA_ERRORS as error:
        raise explained("look at", settings, error) from error
    finally:
        disconnect(connection)


def judge(settings: RabbitMQ, arguments: dict[str, str] | None) -> Diagnosis:
    """What type and arguments of an existing queue mean; None: the broker does not tell us."""
    check = "queue type"
    if arguments is None:
        return Diagnosis(check, "good", "cannot be told: the user has no right to configure it")
    kind = arguments.get("x-queue-type", "classic")
    others = {name: value for name, value in arguments.items() if name != "x-queue-type"}
    said = ", ".join(f"{name} {value}" for name, value in others.items())
    found = f"{kind}, {said}" if said else f"{kind}, durable, without further arguments"
    if kind == "stream":
        return Diagnosis(
            check,
            "wrong",
            found,
            "a stream keeps what was acknowledged: take a classic or quorum queue",
        )
    if others.get("durable") == "false":
        return Diagnosis(
            check, "wrong", found, "it is gone when the broker restarts: declare it durable"
        )
    losing = [f"{name}: {_LOSES[name]}" for name in others if name in _LOSES]
    limit = others.get(_DELIVERY_LIMIT, "")
    if limit.isdecimal() and int(limit) < ENOUGH_DELIVERIES:
        losing.append(
            f"{_DELIVERY_LIMIT}: the broker drops a message after {limit} deliveries, and each "
            f"worker that dies is one of all that it held: set it to {ENOUGH_DELIVERIES} or more, "
            "or to -1 for none where the broker is RabbitMQ 4 (declare the queue again, or "
            "delivery-limit in a policy)"
        )
    if losing:
        return Diagnosis(check, "warning", found, "; ".join(losing))
    return Diagnosis(check, "good", found)


def _missing(settings: RabbitMQ) -> Diagnosis:
    found = f"there is no queue {settings.queue!r}"
    if settings.declare:
        return Diagnosis(
            "queue",
            "warning",
            f"{found}; the first worker declares it, {settings.queue_type} and durable",
            "correct the name, unless no producer was started yet",
        )
    return Diagnosis("queue", "wrong", found, "create it, correct its name, or set declare: true")


def _look(settings: RabbitMQ, connection: pika.BlockingConnection) -> Any:
    """The broker's answer about the queue; None if it is missing."""
    try:
        return connection.channel().queue_declare(settings.queue, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code == _NOT_FOUND:
            return None
        raise


def _arguments(settings: RabbitMQ, connection: pika.BlockingConnection) -> dict[str, str] | None:
    """Type and arguments of the queue, as far as they differ from a plain durable one's."""
    found: dict[str, str] = {}
    declared: dict[str, Any] = {"durable": True, "auto_delete": False, "exclusive": False}
    arguments: dict[str, Any] = {}
    for _ in range(_MOST_ARGUMENTS):
        try:
            connection.channel().queue_declare(
                settings.queue, arguments=dict(arguments), **declared
            )
        except ChannelClosedByBroker as error:
            if error.reply_code == _ACCESS_REFUSED:
                return None
            differs = _DIFFERS.search(error.reply_text)
            if error.reply_code != _PRECONDITION_FAILED or differs is None:
                return found or None
            name, value = differs["name"], differs["value"]
            if name in found:  # the broker does not take its own value back
                return found
            found[name] = value
            if name in declared:
                declared[name] = value == "true"
            else:
                arguments[name] = int(value) if value.lstrip("-").isdecimal() else value
        else:
            break
    return found
