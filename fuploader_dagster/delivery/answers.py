"""What a processor answered for an item, checked: it can be stored as it is.

What must always hold: whatever is wrong with an answer raises `BadItem`, which says what. Nothing
that a processor names is opened, followed or waited for, unless it is a file in the item's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fuploader_dagster.archives.manifest import FailedPart
from fuploader_dagster.contracts.processor import Failure, FileResult, Item, Partial, Result
from fuploader_dagster.disk.header_text import MOST_BYTES, to_text
from fuploader_dagster.errors import BadItem, BadMessage
from fuploader_dagster.processing.envelope import check_file_name
from fuploader_dagster.slots.item_folders import CheckedFile, checked_file

LONGEST_CONTENT_TYPE = 1000
LONGEST_REASON = 500
LONGEST_NAME = 1000
"""Of a part that failed: mostly the address that it would have come from."""
MOST_DETAIL_BYTES = 4096
MOST_FAILURES = 100_000
FAILURE_BYTES = 200
RESULT_BYTES = 300
FILE_BYTES = 2000
"""About what one takes in memory: a part that failed, a result beside its content, and a result
that is a file beside its headers."""
NAMED_FAILURES = 3


class CheckedAnswer(NamedTuple):
    """Results that can be stored, and what is missing beside them."""

    results: Sequence[Result | CheckedFile]
    failures: Sequence[FailedPart] = ()
    rest: bytes | None = None
    """What a dead letter holds in place of the item's content."""
    size_bytes: int = 0
    """About what it takes of memory."""

    def reason(self) -> str:
        """Why the item has a dead letter beside its results."""
        named = "; ".join(f"{one.name}: {one.reason}" for one in self.failures[:NAMED_FAILURES])
        more = len(self.failures) - NAMED_FAILURES
        return (
            f"{len(self.failures)} of its parts failed and {len(self.results)} have results: "
            f"{named}{f'; and {more} more' if more > 0 else ''}"
        )


def checked(answer: Any, item: Item, most_bytes: int) -> CheckedAnswer:
    """An item's results, if they can be stored. Raises `BadItem`. Called once per item."""
    if isinstance(answer, BadItem):
        raise answer
    failures: Sequence[FailedPart] = ()
    rest: bytes | None = None
    size = around = 0
    results: list[Result | CheckedFile] = []
    try:
        if isinstance(answer, Partial):
            failures, rest = _checked_failures(answer, item)
            size = FAILURE_BYTES * len(failures) + len(rest or b"")
            answer = answer.results
        for result in answer:
            results.append(_checked_result(result, item.folder))
            if isinstance(result, Result):
                size += len(result.content)
                around += RESULT_BYTES
            else:
                around += FILE_BYTES + sum(
                    len(text) for pair in result.headers.items() for text in pair
                )
    except (BadMessage, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise BadItem(f"a result cannot be stored: {error}") from error
    if size > most_bytes:
        raise BadItem(f"its results have {size:,} bytes; max_result_bytes is {most_bytes:,}")
    return CheckedAnswer(results, failures, rest, size + around)


def headers_of(result: Result | FileResult) -> dict[str, str]:
    """What is kept with a result."""
    headers = {"content-type": result.content_type} if result.content_type else {}
    return {**headers, **result.headers} if isinstance(result, FileResult) else headers


def _checked_result(result: Any, folder: Path | None) -> Result | CheckedFile:
    is_file = isinstance(result, FileResult)
    if not is_file and not (isinstance(result, Result) and isinstance(result.content, bytes)):
        raise BadItem(f"the processor gave a {type(result).__name__}, not a Result")
    if result.name:
        check_file_name(result.name)
    if len(result.content_type.encode()) > LONGEST_CONTENT_TYPE:
        raise BadItem(f"a content type of more than {LONGEST_CONTENT_TYPE} bytes")
    return _checked_file(result, folder) if is_file else result


def _checked_file(result: FileResult, folder: Path | None) -> CheckedFile:
    if not (isinstance(result.sha256, bytes) and len(result.sha256) == 32):
        raise BadItem(f"the sha256 of the file {result.name!r} is not a digest of 32 bytes")
    _check_headers(result)
    return checked_file(result, folder)


def _check_headers(result: FileResult) -> None:
    if not isinstance(result.headers, Mapping) or not all(
        isinstance(text, str) for pair in result.headers.items() for text in pair
    ):
        raise BadItem(f"the headers of the file {result.name!r} are not texts")
    size = len(to_text(headers_of(result)).encode())
    if size > MOST_BYTES:
        raise BadItem(
            f"the headers of the file {result.name!r} have {size:,} bytes; at most {MOST_BYTES:,} "
            f"are kept"
        )


def _checked_failures(partial: Partial, item: Item) -> tuple[Sequence[FailedPart], bytes | None]:
    """The failures, and what a dead letter about them holds, if there are any."""
    if not isinstance(partial.rest, bytes | None):
        raise BadItem(f"the rest of its Partial is a {type(partial.rest).__name__}, not bytes")
    failures = [_checked_failure(failure, item) for failure in partial.failures]
    if len(failures) > MOST_FAILURES:
        raise BadItem(f"{len(failures):,} of its parts failed; at most {MOST_FAILURES:,} can")
    return failures, partial.rest if failures else None


def _checked_failure(failure: Any, item: Item) -> FailedPart:
    if not isinstance(failure, Failure) or not isinstance(failure.detail, Mapping):
        raise BadItem(f"the processor gave a {type(failure).__name__}, not a Failure")
    detail = dict(failure.detail)
    try:
        encoded = msgspec.json.encode(detail)
        detail = msgspec.json.decode(encoded, type=dict[str, Any])
        msgspec.msgpack.encode(detail)  # as the manifest has it: there are larger numbers in JSON
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadItem(f"the detail of a Failure is not a JSON object: {error}") from error
    if len(encoded) > MOST_DETAIL_BYTES:
        raise BadItem(
            f"the detail of a Failure has {len(encoded):,} bytes; at most {MOST_DETAIL_BYTES:,} "
            f"are kept"
        )
    return FailedPart(
        item.name, _text(failure.name, LONGEST_NAME), _text(failure.reason, LONGEST_REASON), detail
    )


def _text(value: Any, most_characters: int) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()[:most_characters]
