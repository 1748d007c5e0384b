"""`POST /NAME/process`: the pipeline's processor on one file, at once.

What must always hold: one attempt, with the limits of the pipeline's settings; nothing is queued or
stored. The processor is opened with the first request and kept, as long as the server process runs.
An address is fetched as downloads are: only where they may go.

One result is the answer itself, none is 204. Several, and those of an item that lacks some, are
`multipart/form-data`: a part `result` for each, and a part `failures`, which is JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fuploader_dagster.contracts.processor import FileResult, Item, Result
from fuploader_dagster.delivery.answers import CheckedAnswer
from fuploader_dagster.delivery.direct import DirectProcessor
from fuploader_dagster.disk.header_text import folded
from fuploader_dagster.disk.own_files import opened_own
from fuploader_dagster.errors import BadItem, BadMessage
from fuploader_dagster.fetching.settings import Fetch
from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.front.bodies import body_of
from fuploader_dagster.front.file_answers import OCTETS, headers_to_save, send_pieces
from fuploader_dagster.front.route import Call, Route, Served
from fuploader_dagster.front.schemas import FILE_NAME
from fuploader_dagster.processing.envelope import check_file_name
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.item_folders import CheckedFile

DEFAULT_NAME = "request"
_PIECE_BYTES = 2**20


def routes() -> Sequence[Route]:
    return [Route("POST", "/{pipeline}/process", "process", _process, spec=_SPEC)]


class Processing:
    """What a server process keeps open to process items of one pipeline."""

    def __init__(self, served: Served) -> None:
        """Raises `Refusal` if the pipeline has no processor. Called in the event loop."""
        settings = served.pipeline.process
        if settings is None:
            raise Refusal(404, f"pipeline {served.pipeline.name} has no processor")
        self.processor = DirectProcessor(settings)
        fetch = Fetch(
            urls="urls",
            allow_hosts=list(served.serve.fetch_hosts),
            max_bytes=served.serve.max_body_bytes,
            timeout_seconds=served.serve.body_seconds,
            stall_seconds=served.serve.body_seconds,
            max_retries=0,
        )
        self.fetcher = DirectProcessor(fetch)
        self._loop = asyncio.get_running_loop()
        served.at_end.callback(self._close)

    def _close(self) -> None:
        """Called in a thread, as long as the loop runs."""
        for one in (self.processor, self.fetcher):
            asyncio.run_coroutine_threadsafe(one.aclose(), self._loop).result()


async def _process(call: Call) -> Response:
    served = call.of_pipeline
    processing = served.kept(Processing)
    request, url = call.request, call.request.query_params.get("url")
    body = await body_of(call)
    if url is not None and body:
        raise Refusal(400, "there is a body, and an address as well", hint="send one of them")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fuploader-process-")))
        item = _item(request, served.pipeline, body, _made(folder / "item"))
        if url is not None:
            if isinstance(served.pipeline.process, Fetch):
                item = replace(item, content=_task(url, served.pipeline.process))
            else:
                fetched = _made(folder / "fetched")
                item = await _fetched(url, item, processing.fetcher, fetched)
        answer = await processing.processor.process(item)
        return _Answer(answer, item, stack.pop_all())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _item(request: Request, pipeline: Pipeline, body: bytes, folder: Path) -> Item:
    """The body as an item, with those headers that the pipeline keeps or its processor looks at."""
    query = request.query_params
    try:
        name = check_file_name(query.get("name") or _last_of(query.get("url")) or DEFAULT_NAME)
    except BadMessage as error:
        raise Refusal(400, error.message, hint="say another one with ?name=") from error
    process = pipeline.process
    wanted = [*pipeline.headers, *(process.headers_used() if process else ()), "content-type"]
    kept_as = {folded(one): one for one in reversed(wanted)}
    headers = {
        kept_as[folded(header)]: value
        for header, value in request.headers.items()
        if folded(header) in kept_as
    }
    if (command := query.get("cmd")) is not None:
        headers["cmd"] = command
    return Item(name, body, headers, f"request-{secrets.token_hex(16)}", folder)


def _last_of(url: str | None) -> str:
    """The last part of the address, if a file can be called like it."""
    try:
        return check_file_name(PurePosixPath(unquote(urlsplit(url or "").path)).name)
    except (ValueError, BadMessage):
        return ""


def _task(url: str, settings: Fetch) -> bytes:
    """The content of an item of a pipeline that downloads."""
    if settings.url is not None:
        raise Refusal(
            400,
            f"the addresses of this pipeline are made of fields: {settings.url.partition('?')[0]}",
            hint="send an object with these fields as the body",
        )
    if settings.urls is None:
        if not url or any(c.isspace() for c in url):
            raise Refusal(400, "the address has a space or a line break")
        return url.encode()
    task: Any = [url]
    for part in reversed(settings.urls.split(".")):
        task = {part: task}
    return json.dumps(task).encode()


async def _fetched(url: str, item: Item, fetcher: DirectProcessor, folder: Path) -> Item:
    """The item with what is at the address as its content."""
    task = Item("task", json.dumps({"urls": [url]}).encode(), {}, item.key, folder)
    try:
        answer = await fetcher.process(task)
    except BadItem as error:
        raise Refusal(
            422,
            error.message,
            hint="`fetch_hosts` of the setting `serve` says from where files are fetched; "
            "without any: from all public hosts",
        ) from error
    (file,) = [one.result for one in answer.results if isinstance(one, CheckedFile)]
    content = await asyncio.to_thread(file.path.read_bytes)
    kind = {"content-type": file.content_type} if file.content_type else {}
    return replace(item, content=content, headers={**item.headers, **kind})


class _Answer(Response):
    """What came out of an item. The item's folder goes when it is sent."""

    def __init__(self, answer: CheckedAnswer, item: Item, at_end: ExitStack) -> None:
        self._item = item
        self._at_end = at_end
        self._answer = answer
        self._stated = [one if isinstance(one, Result) else one.result for one in answer.results]
        self._boundary = secrets.token_hex(16)
        super().__init__(None, *self._head())
        if self._has_parts:
            del self.headers["content-length"]

    @property
    def _has_parts(self) -> bool:
        return bool(self._answer.failures) or len(self._stated) > 1

    def _head(self) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        if self._has_parts:
            kind = f"multipart/form-data; boundary={self._boundary}"
            return 200, {"content-type": kind, "x-content-type-options": "nosniff"}
        if not self._stated:
            return 204, {}
        (result,) = self._stated
        headers = headers_to_save(result.name or self._item.name, _type_of(result))
        return 200, {**headers, "content-length": str(_size_of(result))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            head = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **head})
            await send_pieces(self._pieces(), receive, send)
        finally:
            await asyncio.to_thread(self._at_end.close)

    def _pieces(self) -> Iterator[bytes]:
        if self.status_code == 204:
            return
        if not self._has_parts:
            yield from _content_of(self._stated[0])
            return
        for result in self._stated:
            name = result.name or self._item.name
            yield self._part("result", _type_of(result), name)
            yield from _content_of(result)
            yield b"\r\n"
        if self._answer.failures:
            yield self._part("failures", "application/json")
            yield json.dumps(msgspec.to_builtins(self._answer.failures)).encode()
            yield b"\r\n"
        yield f"--{self._boundary}--\r\n".encode()

    def _part(self, field: str, content_type: str, name: str = "") -> bytes:
        """What stands before the content of a part."""
        file = f'; filename="{_quoted(name)}"' if name else ""
        return (
            f"--{self._boundary}\r\n"
            f'content-disposition: form-data; name="{field}"{file}\r\n'
            f"content-type: {content_type}\r\n\r\n"
        ).encode()


def _quoted(name: str) -> str:
    """A file name in multipart/form-data, as browsers write it. It has no control characters."""
    return name.replace('"', "%22").encode("utf-8", "replace").decode()


def _type_of(result: Result | FileResult) -> str:
    kind = result.content_type
    return kind if kind.isascii() and kind.isprintable() and "/" in kind else OCTETS


def _size_of(result: Result | FileResult) -> int:
    return len(result.content) if isinstance(result, Result) else result.size_bytes


def _content_of(result: Result | FileResult) -> Iterator[bytes]:
    if isinstance(result, Result):
        yield result.content
        return
    with opened_own(result.path, os.O_RDONLY) as descriptor:
        while piece := os.read(descriptor, _PIECE_BYTES):
            yield piece


def _query(name: str, said: str, **schema: Any) -> dict[str, Any]:
    schema = {"type": "string", **schema}
    return {"name": name, "in": "query", "description": said, "schema": schema}


_SPEC: dict[str, Any] = {
    "summary": "Process one file now",
    "description": "The body, or what is at `url`, goes through the pipeline's processor; nothing "
    "is queued or stored.",
    "parameters": [
        _query("cmd", "Chooses a route: the value of the header `cmd`."),
        _query("url", "Address of the file, in place of a body.", format="uri"),
        _query("name", "What the file is called.", **FILE_NAME),
    ],
    "requestBody": {"content": {"*/*": {"schema": {}}}},
    "responses": {
        "200": {
            "description": "The result; several are multipart/form-data",
            "content": {"*/*": {}},
        },
        "204": {"description": "Nothing came out of it"},
        "400": {"description": "The request says two things, or something that cannot be"},
        "404": {"description": "The pipeline has no processor"},
        "413": {"description": "The body is too large"},
        "422": {"description": "The file cannot be processed, or not be fetched"},
        "503": {"description": "It may work later: see Retry-After"},
    },
}
