"""What a server's answer means for a download. Decisions only: no answer is read here.

| answer | meaning |
|---|---|
| 200, 203 | the whole file |
| 206 that fits the bytes that are here | the rest of the file |
| 206 that does not, 416 | begin with the first byte |
| 301, 302, 303, 307, 308 with a Location | ask there |
| 408, 425, 429, 500 and above but 501 and 505 | may pass: try again |
| anything else | refused: trying again gives the same |
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase

from fuploader_dagster.contracts.retry_after import pause_seconds
from fuploader_dagster.fetching.failures import NotFetched, Passing, Refused
from fuploader_dagster.settings.http_headers import usable_content_type
from fuploader_dagster.settings.safe_text import in_a_line

WHOLE = (200, 203)
REST = 206
OUT_OF_RANGE = 416
REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)
_FINAL = (501, 505)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_KEPT = ("ETag", "Last-Modified", "Content-Encoding")
_LONGEST_HEADER = 1000


def error_of(status: int, headers: Mapping[str, str]) -> NotFetched:
    """The failure that a status is which gives no file."""
    said = f"the server answered {status}"
    if status in _PASSING or (status >= 500 and status not in _FINAL):
        pause = pause_seconds(headers.get("Retry-After"), time.time())
        return Passing(said, status=status, retry_after_seconds=pause)
    return Refused(said, status=status)


def validator_of(headers: Mapping[str, str]) -> str:
    """What names this version of the file in If-Range; empty if nothing does with certainty.

    A weak ETag does not, nor a Last-Modified that is not older than the answer (RFC 9110, 8.8).
    """
    etag = headers.get("ETag", "").strip()
    if re.fullmatch(r'"[!#-~]*"', etag):
        return etag
    modified = headers.get("Last-Modified", "").strip()
    if not modified:
        return ""
    try:
        age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(modified)
    except (ValueError, TypeError, IndexError):
        return ""
    return modified if age.total_seconds() >= 1 else ""


def continues(
    headers: Mapping[str, str], size_bytes: int, total_bytes: int | None, validator: str
) -> int | None:
    """The length of the whole file if a 206 goes on after `size_bytes`; None if it does not."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None or match[3] == "*":
        return None
    first, last, total = int(match[1]), int(match[2]), int(match[3])
    if (first, last) != (size_bytes, total - 1) or total_bytes not in (None, total):
        return None
    etag = headers.get("ETag", "").strip()
    if etag and validator.startswith('"') and etag != validator:
        return None
    return total


def length_of(headers: Mapping[str, str]) -> int | None:
    """The Content-Length, if there is one."""
    stated = headers.get("Content-Length", "").strip()
    return int(stated) if stated.isascii() and stated.isdecimal() and len(stated) < 19 else None


def check_type(headers: Mapping[str, str], accepted: list[str]) -> None:
    """Raise `Refused` if the file is not of a type that is accepted."""
    content_type = type_of(headers).partition(";")[0].strip().lower()
    if accepted and not any(fnmatchcase(content_type, one.lower()) for one in accepted):
        named = in_a_line(content_type[:80]) or "no content type"
        raise Refused(f"the server sent {named}; content_types does not have it")


def type_of(headers: Mapping[str, str]) -> str:
    """The content type, if it can be one."""
    return usable_content_type(headers.get("Content-Type", ""))


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that are kept with the file."""
    found = ((name.lower(), headers.get(name, "")) for name in _KEPT)
    return {name: in_a_line(value)[:_LONGEST_HEADER] for name, value in found if value}
