"""From a message to a named file: the built-in formats, or a user's parser and name generator.

What must always hold: each message gives either a `File` or a `BadMessage`; whatever a user's
function does to one message, the others flow on. Without a parser the content is the payload's
bytes as received; with one, it is what the parser returned, written as FUploader writes it (bytes
as they are, text as UTF-8, anything else as JSON).

A batch is decoded only as far as one commit needs: until the files have `most_bytes` (a few packed
kilobytes can unpack to gigabytes) or `most_seconds` have passed. The next commit takes the rest.

If memory runs out at a message, only that message suffers: it is decoded once more, as the first of
the next batch, when everything decoded before it is stored and its memory is free. If that is still
too much, it is a bad message. But a user's function may hold on to the missing memory, so this
process decodes nothing more (`exhausted`), and the worker leaves. A function that does not return
ends the process: an alarm is set for each message (`alarm`).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from fuploader_dagster.contracts.functions import USER_ERRORS, name_of, raised
from fuploader_dagster.contracts.source import Message
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.processing.envelope import (
    Envelope,
    check_file_name,
    decode_envelope,
    decode_json,
    decode_raw,
)
from fuploader_dagster.processing.producer import serialize_file_payload
from fuploader_dagster.settings.pipeline import Intake


class _OutOfMemory(BadMessage):
    """Decoding it exceeded the worker's memory limit, or the machine's memory."""


class File(NamedTuple):
    """A message that can be stored. The name is checked."""

    name: str
    content: bytes
    headers: str = ""
    """The message headers that are kept with it, as text (`disk/header_text.py`)."""


class Decoder:
    """Turns messages into files, according to a pipeline's settings."""

    def __init__(self, pipeline: Intake, alarm: Callable[[float], object] | None = None) -> None:
        """`alarm(seconds)` ends the process after that time unless it is set again; 0 cancels it.
        Without an alarm, a function that hangs is not stopped.
        """
        self.exhausted = False
        """Memory ran out: this process should decode nothing more."""
        self._alarm = alarm or (lambda _: None)
        self._pipeline = pipeline
        self._parser = pipeline.parser
        self._parser_name = f"the parser {name_of(pipeline.parser)}" if pipeline.parser else ""
        self._namer = pipeline.file_name
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def may_take_long(self) -> bool:
        """Whether it runs a user's code."""
        return self._parser is not None or self._namer is not None

    def decode(
        self,
        messages: Sequence[Message],
        *,
        most_bytes: float = math.inf,
        most_seconds: float = math.inf,
    ) -> list[File | BadMessage]:
        """One result per message, in order; only for the first ones, if they are enough.

        There is at least one. Calls of an async parser run side by side and are waited for.
        """
        parser = self._parser
        decode_one = self._plain if parser is None else partial(self._parsed, parser)
        until = time.monotonic() + most_seconds
        size = 0
        results: list[File | BadMessage | asyncio.Task[Any]] = []
        try:
            for message in messages:
                result = BadMessage(message.damage) if message.damage else decode_one(message)
                out_of_memory = isinstance(result, _OutOfMemory)
                if out_of_memory and results:
                    break  # the messages before it may have taken the memory
                results.append(result)
                if isinstance(result, File):
                    size += len(result.content)
                if out_of_memory or size >= most_bytes or time.monotonic() >= until:
                    break
            finished = self._await_all(results, messages)
        finally:
            if self.may_take_long:
                self._alarm(0)
        self.exhausted = any(isinstance(result, _OutOfMemory) for result in finished)
        return finished

    def close(self) -> None:
        """Close the event loop of an async parser. May be repeated."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _plain(self, message: Message) -> File | BadMessage:
        try:
            envelope = self._built_in(message)
            namer = self._namer
            name = envelope.file_name if namer is None else self._ask_name(namer, envelope)
            return File(check_file_name(name), envelope.content)
        except BadMessage as error:
            return error
        except Exception as error:  # noqa: BLE001  the dead letter says it; the others flow on
            return _misbehaved("decoding it", error)

    def _built_in(self, message: Message) -> Envelope:
        """The message in one of the formats that need no parser."""
        pipeline = self._pipeline
        if pipeline.message_format == "envelope":
            return decode_envelope(
                message.body,
                name_fields=pipeline.name_fields,
                max_bytes=pipeline.max_unpacked_bytes,
            )
        if pipeline.message_format == "json":
            return decode_json(message.body, name_fields=pipeline.name_fields)
        return decode_raw(message.body, message.message_id)

    def _parsed(
        self, parser: Callable[..., Any], message: Message
    ) -> File | BadMessage | asyncio.Task[Any]:
        """The user's parser's result; a task if the parser is async."""
        self._alarm(self._pipeline.parser_timeout_seconds)
        try:
            parsed = _ask(self._parser_name, parser, message.body)
        except BadMessage as error:
            return error
        return (
            self._begun(parsed) if inspect.isawaitable(parsed) else self._finished(parsed, message)
        )

    def _finished(self, parsed: Any, message: Message) -> File | BadMessage:
        try:
            return self._named(parsed, message)
        except BadMessage as error:
            return error

    def _named(self, parsed: Any, message: Message) -> File:
        if isinstance(parsed, BadMessage):
            raise parsed
        if parsed is None:
            raise BadMessage(f"{self._parser_name} returned None")
        if self._namer is not None:
            name = self._ask_name(self._namer, parsed)
        else:  # without any name: one that a redelivery of the message gets as well
            fields = self._pipeline.name_fields
            found = _ask("finding a name in what the parser returned", _name_in, parsed, fields)
            name = found or decode_raw(message.body, message.message_id).file_name
        content = _ask("writing what the parser returned", _content_of, parsed)
        return File(check_file_name(name), content)

    def _ask_name(self, namer: Callable[..., Any], parsed: Any) -> str:
        self._alarm(self._pipeline.parser_timeout_seconds)
        name = _ask(f"the file name generator {name_of(namer)}", namer, parsed)
        if not isinstance(name, str):
            raise BadMessage(
                f"the file name generator {name_of(namer)} returned a value of type "
                f"{type(name).__name__}, not a string"
            )
        return name

    def _begun(self, awaitable: Awaitable[Any]) -> asyncio.Task[Any]:
        """Runs until its first `await`, so the time that a blocking async parser takes is seen."""
        self._loop = self._loop or asyncio.new_event_loop()
        task = self._loop.create_task(self._answer(awaitable))
        self._loop.run_until_complete(asyncio.sleep(0))
        return task

    async def _answer(self, awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except (*USER_ERRORS, asyncio.CancelledError) as error:
            return _misbehaved(self._parser_name, error)
        finally:  # as long as one call after the other ends, they do not hang
            self._alarm(self._pipeline.parser_timeout_seconds)

    def _await_all(
        self,
        results: Sequence[File | BadMessage | asyncio.Task[Any]],
        messages: Sequence[Message],
    ) -> list[File | BadMessage]:
        """The results, each task replaced by its result."""
        tasks = [result for result in results if isinstance(result, asyncio.Task)]
        if tasks and self._loop is not None:
            self._loop.run_until_complete(asyncio.wait(tasks))
        return [
            self._finished(result.result(), message) if isinstance(result, asyncio.Task) else result
            for result, message in zip(results, messages, strict=False)
        ]


def _ask(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run code that may be a user's, also code inside an object that a parser returned."""
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
        # a `DecodedFilePayload`, ours or that of FUploader's package
        return serialize_file_payload(parsed.payload, content_type=parsed.content_type)
    if isinstance(parsed, str):
        return parsed.encode("utf-8")
    return json.dumps(parsed, ensure_ascii=False).encode("utf-8")


def _misbehaved(what: str, error: BaseException) -> BadMessage:
    kind = _OutOfMemory if isinstance(error, MemoryError) else BadMessage
    return kind(f"{what} raised {raised(error)}")
