"""From a message to a named file: the built-in formats, or a user's parser and name generator.

What must always hold: each message of a batch gives either a `File` or a `BadMessage`; whatever a
user's function does to one message, the others flow on. Without a parser the content is the
payload's bytes as received; with one, it is what the parser returned, written as FUploader writes
it (bytes as they are, text as UTF-8, anything else as JSON).

A user's function that runs out of memory costs its own message; but what it holds by then may be
what is missing, so nothing more is decoded in this process (`exhausted`), and the worker leaves.
One that does not return ends the process: an alarm is set for each message (`alarm`).
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fuploader_dagster.config import Intake
from fuploader_dagster.envelope import (
    Envelope,
    check_file_name,
    decode_envelope,
    decode_json,
    decode_raw,
)
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.messages import serialize_file_payload
from fuploader_dagster.source import Message
from fuploader_dagster.strategies import USER_ERRORS, name_of, raised


class _OutOfMemory(BadMessage):
    """A user's function ran into the worker's limit, or the machine's."""


def no_alarm(_seconds: float) -> None:
    """Where nothing but ending the process could be done about a function that hangs."""


class File(NamedTuple):
    """A message that can be stored. The name is checked."""

    name: str
    content: bytes


class Decoder:
    """Turns messages into files, as one pipeline's settings say."""

    def __init__(self, settings: Intake, alarm: Callable[[float], object] = no_alarm) -> None:
        """`alarm(seconds)` ends the process after that time unless it is set anew; 0 unsets it."""
        self.exhausted = False
        """Memory ran out: this process should decode nothing more."""
        self._alarm = alarm
        self._settings = settings
        self._parser = settings.parser
        self._namer = settings.file_name
        self._built_in: Callable[[Message], Envelope] = {
            "envelope": self._envelope,
            "json": self._json,
            "raw": self._raw,
        }[settings.message_format]
        self._loop: asyncio.AbstractEventLoop | None = None

    def decode(self, messages: Sequence[Message]) -> list[File | BadMessage]:
        """One result per message, in their order; of the first ones only if it is `exhausted`."""
        if self._parser is None and self._namer is None:
            return [self._plain(message) for message in messages]
        try:
            results = self._by_strategies(messages)
        finally:
            self._alarm(0)
        for number, result in enumerate(results):
            if isinstance(result, _OutOfMemory):
                self.exhausted = True
                return results[: number + 1]
        return results

    def _by_strategies(self, messages: Sequence[Message]) -> list[File | BadMessage]:
        if self._parser is None:
            return [self._plain(message) for message in messages]
        parsed = self._parse(self._parser, messages)
        return [
            self._attempt(self._named, result, message)
            for message, result in zip(messages, parsed, strict=False)  # exhausted: fewer results
        ]

    def close(self) -> None:
        """Give back what an async parser needed. May be repeated."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    @staticmethod
    def _attempt(
        step: Callable[[Any, Message], File], parsed: Any, message: Message
    ) -> File | BadMessage:
        try:
            return step(parsed, message)
        except BadMessage as error:
            return error

    def _plain(self, message: Message) -> File | BadMessage:
        if message.damage:
            return BadMessage(message.damage)
        try:
            envelope = self._built_in(message)
            name = envelope.file_name if self._namer is None else self._ask_name(envelope)
            return File(check_file_name(name), envelope.content)
        except BadMessage as error:
            return error

    def _named(self, parsed: Any, message: Message) -> File:
        if isinstance(parsed, BadMessage):
            raise parsed
        if self._namer is not None:
            name = self._ask_name(parsed)
        else:  # a message without any name gets the one that a redelivery of it gets too
            fields = self._settings.name_fields
            found = _ask("looking for a name in what the parser returned", _name_in, parsed, fields)
            name = found or self._raw(message).file_name
        content = _ask("writing what the parser returned", _content_of, parsed)
        return File(check_file_name(name), content)

    def _ask_name(self, parsed: Any) -> str:
        namer = self._namer
        assert namer is not None  # noqa: S101 - else it is not called
        self._alarm(self._settings.parser_timeout_seconds)
        name = _ask(f"the file name generator {name_of(namer)}", namer, parsed)
        if not isinstance(name, str):
            raise BadMessage(
                f"the file name generator {name_of(namer)} returned a {type(name).__name__}, "
                f"not a string"
            )
        return name

    def _parse(self, parser: Callable[..., Any], messages: Sequence[Message]) -> list[Any]:
        """What the user's parser makes of each body; awaitables of a batch run side by side."""
        results: list[Any] = []
        what = f"the parser {name_of(parser)}"
        for message in messages:
            if message.damage:
                results.append(BadMessage(message.damage))
                continue
            self._alarm(self._settings.parser_timeout_seconds)
            try:
                results.append(_ask(what, parser, message.body))
            except BadMessage as error:
                results.append(error)
                if isinstance(error, _OutOfMemory):
                    break
        waiting = [n for n, result in enumerate(results) if inspect.isawaitable(result)]
        if waiting:
            answers = self._await_all(parser, [results[n] for n in waiting])
            for n, answer in zip(waiting, answers, strict=True):
                results[n] = answer
        return [
            BadMessage(f"the parser {name_of(parser)} returned None") if result is None else result
            for result in results
        ]

    def _await_all(self, parser: Callable[..., Any], awaitables: Sequence[Any]) -> list[Any]:
        async def answer_of(awaitable: Any) -> Any:
            try:
                return await awaitable
            except (*USER_ERRORS, asyncio.CancelledError) as error:
                return _misbehaved(f"the parser {name_of(parser)}", error)
            finally:  # as long as one after the other is done, they do not hang
                self._alarm(self._settings.parser_timeout_seconds)

        async def gather() -> list[Any]:
            return await asyncio.gather(*map(answer_of, awaitables))

        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(gather())

    def _envelope(self, message: Message) -> Envelope:
        return decode_envelope(
            message.body,
            name_fields=self._settings.name_fields,
            max_bytes=self._settings.max_unpacked_bytes,
        )

    def _json(self, message: Message) -> Envelope:
        return decode_json(message.body, name_fields=self._settings.name_fields)

    def _raw(self, message: Message) -> Envelope:
        return decode_raw(message.body, message.message_id)


def _ask(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a user's code, which may be hidden in an object that a parser returned."""
    try:
        return function(*arguments)
    except USER_ERRORS as error:
        raise _misbehaved(what, error) from error


def _name_in(parsed: Any, fields: Sequence[str]) -> str:
    for field in fields:
        value = parsed.get(field) if isinstance(parsed, Mapping) else getattr(parsed, field, None)
        if name := str(value or "").strip():
            return name
    return ""


def _content_of(parsed: Any) -> bytes:
    if isinstance(parsed, Envelope):
        parsed = parsed.content
    if isinstance(parsed, bytes):
        return parsed
    if hasattr(parsed, "payload") and hasattr(parsed, "content_type"):
        # `DecodedFilePayload`, ours or that of FUploader's package
        return serialize_file_payload(parsed.payload, content_type=parsed.content_type)
    if isinstance(parsed, str):
        return parsed.encode("utf-8")
    return json.dumps(parsed, ensure_ascii=False).encode("utf-8")


def _misbehaved(what: str, error: BaseException) -> BadMessage:
    kind = _OutOfMemory if isinstance(error, MemoryError) else BadMessage
    return kind(f"{what} raised {raised(error)}")
