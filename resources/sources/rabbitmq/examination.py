"""Examines a RabbitMQ queue for `fuploader doctor`: consumes and creates nothing.

AMQP has no way to ask for a queue's type and arguments. But when an existing queue is declared, the
broker compares them, and its refusal names the first that differs and its value. So, once the queue
is known to exist, it is declared as a plain one, and each answer is put into the next declaration
until the broker agrees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pika
from pika.exceptions import ChannelClosedByBroker

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.resources.sources.rabbitmq import connection
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
"""What removes messages before they are drained."""
_DELIVERY_LIMIT = "x-delivery-limit"
ENOUGH_DELIVERIES = 20
"""Each worker that dies is one delivery of every message it held, and finding the message that
kills workers among `prefetch_count` others takes log2(prefetch_count) + max_deliveries + 1 of them:
16 with the defaults. The rest is for machines that are switched off."""


def examine(settings: RabbitMQ) -> Iterator[Diagnosis]:
    """Check the connection, the queue, its type and arguments. Raises our errors."""
    opened = connection.open_connection(settings, "doctor")
    try:
        where = f"RabbitMQ {server_version(opened)} at {settings.address()}"
        yield Diagnosis("broker", "good", f"{where} accepts our login")
        answer = _look(settings, opened)
        if answer is None:
            yield _missing(settings)
            return
        waiting, consumers = answer.method.message_count, answer.method.consumer_count
        yield Diagnosis(
            "queue",
            "good",
            f"{settings.queue!r} exists: {counted(waiting, 'message waits', 'messages wait')}, "
            f"{counted(consumers, 'consumer')}",
        )
        yield judge(_arguments(settings, opened))
    except connection.PIKA_ERRORS as error:
        raise connection.explained("look at", settings, error) from error
    finally:
        connection.disconnect(opened)


def judge(arguments: dict[str, str] | None) -> Diagnosis:
    """What type and arguments of an existing queue mean; None: the broker does not say them."""
    check = "queue type"
    if arguments is None:
        return Diagnosis(check, "good", "unknown: the user may not configure the queue")
    kind = arguments.get("x-queue-type", "classic")
    others = {name: value for name, value in arguments.items() if name != "x-queue-type"}
    said = ", ".join(f"{name} {value}" for name, value in others.items())
    found = f"{kind}, {said}" if said else f"{kind}, durable, without further arguments"
    if kind == "stream":
        return Diagnosis(
            check,
            "wrong",
            found,
            "a stream keeps acknowledged messages: use a classic or quorum queue",
        )
    if others.get("durable") == "false":
        return Diagnosis(
            check, "wrong", found, "the queue is lost when the broker restarts: declare it durable"
        )
    losing = [f"{name}: {_LOSES[name]}" for name in others if name in _LOSES]
    limit = others.get(_DELIVERY_LIMIT, "")
    if limit.isdecimal() and int(limit) < ENOUGH_DELIVERIES:
        losing.append(
            f"{_DELIVERY_LIMIT}: the broker drops a message after {limit} deliveries, and each "
            "worker that dies is a delivery of every message it held: set it to "
            f"{ENOUGH_DELIVERIES} or more, or on RabbitMQ 4 to -1 for no limit (declare the queue "
            "again, or set delivery-limit in a policy)"
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
            "check the name, unless no producer has started yet",
        )
    return Diagnosis("queue", "wrong", found, "create it, correct its name, or set declare: true")


def _look(settings: RabbitMQ, opened: pika.BlockingConnection) -> Any:
    """The broker's answer about the queue; None if it is missing."""
    try:
        return opened.channel().queue_declare(settings.queue, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code == _NOT_FOUND:
            return None
        raise


def _arguments(settings: RabbitMQ, opened: pika.BlockingConnection) -> dict[str, str] | None:
    """Type and arguments of the queue that differ from those of a plain durable one."""
    found: dict[str, str] = {}
    declared: dict[str, Any] = {"durable": True, "auto_delete": False, "exclusive": False}
    arguments: dict[str, Any] = {}
    for _ in range(_MOST_ARGUMENTS):
        try:
            opened.channel().queue_declare(settings.queue, arguments=dict(arguments), **declared)
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
