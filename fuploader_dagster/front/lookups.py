"""`GET /NAME/messages/{id}`: where a message is. `GET /NAME/files/{name}`: its file.

What must always hold:

- Names come from anybody: they are compared with names in indexes and archives, and are never part
  of a path on this machine.
- A file is sent as something to save, under a type that no browser runs.
- Looking is limited: so many bytes of indexes for a request, and so many requests at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

from starlette.responses import Response

from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.errors import ColdObject, StoreRefused
from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.front.file_answers import FileAnswer, headers_of_file
from fuploader_dagster.front.published import Published
from fuploader_dagster.front.route import Call, Route, Served
from fuploader_dagster.lookup.files import NoSuchFile, OpenFile, open_file
from fuploader_dagster.lookup.found import STATES, Copy, Letter, as_builtins
from fuploader_dagster.lookup.search import Search
from fuploader_dagster.lookup.wanted import Wanted

MOST_BYTES = 256 * 1024 * 1024
"""Of indexes, and of dead letters, that are read for one request: about three million messages."""
MOST_COPIES = 1000
AT_ONCE = 4
"""Requests of a pipeline that look at the same time; the others wait."""
_WAITING, _UNKNOWN = "waiting", "unknown"

_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_PARTITION = {"name": "partition", "in": "query", "schema": {"type": "string"}}


def routes() -> Sequence[Route]:
    return [
        Route("GET", "/{pipeline}/messages/{id:path}", "read", _where, spec=_SPEC_OF_MESSAGE),
        Route("GET", "/{pipeline}/files/{name:path}", "read", _file, spec=_SPEC_OF_FILE),
    ]


class Lookups:
    """What the lookups of a pipeline share in one server process."""

    def __init__(self, served: Served) -> None:
        self.pipeline = served.pipeline
        self.finder = ArchiveFinder({served.pipeline.name: served.pipeline})
        self.published = Published(served.pipeline.layout.published, served.serve.remember_ids)
        self.turn = asyncio.Semaphore(AT_ONCE)


async def _where(call: Call) -> Response:
    lookups = call.of_pipeline.kept(Lookups)
    wanted: str = call.request.path_params["id"]
    async with lookups.turn:
        answer = await asyncio.to_thread(_look, lookups, wanted)
    if answer["state"] == _UNKNOWN:
        raise Refusal(
            404,
            f"nothing is known here of a message {wanted[:300]!r}",
            hint="it may be on another node, wait in the queue if it did not come over HTTP, or "
            "never have been published",
            more={"id": wanted, "state": _UNKNOWN, "incomplete": answer["incomplete"]},
        )
    # Names may be no UTF-8; then JSON has them as escapes, as the command line does.
    headers = {"x-content-type-options": "nosniff"}
    return Response(json.dumps(answer), 200, headers, "application/json")


def _look(lookups: Lookups, wanted: str) -> dict[str, Any]:
    search = Search(lookups.pipeline, Wanted(wanted), most_bytes=MOST_BYTES)
    letters = search.letters()
    copies = list(islice(search.copies(), MOST_COPIES + 1))
    incomplete = [*search.incomplete(), *map(str, filter(None, [search.catalog_trouble]))]
    if len(copies) > MOST_COPIES:
        incomplete.append(f"more than {MOST_COPIES:,} copies: the others")
    copies = copies[:MOST_COPIES]
    return {
        "id": wanted,
        "pipeline": lookups.pipeline.name,
        "state": _state(wanted, copies, letters) or _unseen(wanted, lookups.published),
        "copies": [as_builtins(one) for one in copies],
        "dead_letters": [as_builtins(one) for one in letters],
        "incomplete": incomplete,
    }


def _state(wanted: str, copies: Sequence[Copy], letters: Sequence[Letter]) -> str:
    """How far the message is; of several of its name, the furthest. `dead letter` only if it is
    nowhere else. Empty: nothing is known of it."""
    own = [one for one in copies if one.name == wanted] or copies
    if own:
        return STATES[max(STATES.index(one.state) for one in own)]
    if any(one.waits for one in letters):
        return "dead letter"
    return "sent back" if letters else ""


def _unseen(wanted: str, published: Published) -> str:
    """The state of a message of which this node has nothing."""
    return _WAITING if wanted in published else _UNKNOWN


async def _file(call: Call) -> Response:
    lookups = call.of_pipeline.kept(Lookups)
    name: str = call.request.path_params["name"]
    partition = call.request.query_params.get("partition")

    def find() -> OpenFile:
        return open_file(
            lookups.pipeline, name, lookups.finder, partition=partition, most_bytes=MOST_BYTES
        )

    async with lookups.turn:
        try:
            file = await asyncio.to_thread(find)
        except NoSuchFile as error:
            raise Refusal(404, error.message, hint=error.hint) from error
        except StoreRefused as error:  # the archive is known, and the store does not hand it out
            status = 409 if isinstance(error, ColdObject) else 502
            raise Refusal(status, error.message, hint=error.hint) from error
    return FileAnswer(
        pieces=file.pieces,
        size_bytes=file.size_bytes,
        headers=headers_of_file(file),
        request=call.request,
        close=file.close,
    )


_SPEC_OF_MESSAGE: dict[str, Any] = {
    "operationId": "where",
    "summary": "Where a message is",
    "description": "By the id that publishing it gave, the name of its file, or its message id: in "
    "which slot or archive, what sinks have of it, dead letters.",
    "parameters": [_ID],
    "responses": {
        "200": {
            "description": "What is known of it on this node",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["id", "pipeline", "state", "copies", "dead_letters"],
                        "properties": {
                            "id": {"type": "string"},
                            "pipeline": {"type": "string"},
                            "state": {"enum": [_WAITING, *STATES, "dead letter", "sent back"]},
                            "copies": {"type": "array", "items": {"type": "object"}},
                            "dead_letters": {"type": "array", "items": {"type": "object"}},
                            "incomplete": {"type": "array", "items": {"type": "string"}},
                        },
                    }
                }
            },
        },
        "404": {"description": "Nothing is known of it here"},
    },
}
_SPEC_OF_FILE: dict[str, Any] = {
    "summary": "The file of a message, or a result",
    "description": "The newest of exactly this name, from the disk or out of its archive; results "
    "are named `results/...`. One range of bytes can be asked for.",
    "parameters": [_NAME, _PARTITION],
    "responses": {
        "200": {"description": "The file", "content": {"*/*": {}}},
        "206": {"description": "A part of it", "content": {"*/*": {}}},
        "304": {"description": "It is the one that If-None-Match names"},
        "404": {"description": "There is no such file here"},
        "409": {"description": "Its archive must be restored by the store first"},
        "416": {"description": "It has no such bytes"},
        "502": {"description": "The store does not hand out its archive"},
    },
}
