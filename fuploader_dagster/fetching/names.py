"""What a fetched file is called.

What must always hold:

- A name that the task gives is used as it is, or refused as slots refuse it (`check_file_name`):
  `../x` fetches nothing. Only an ending is added if it has none.
- A name that comes from the network is never refused: what a file name cannot have is replaced.
- The same answer gives the same name.

In this order: the task's name; the file name in Content-Disposition (RFC 6266); the last part of
the address's path; `file`. A name without an ending gets that of Content-Disposition, of the path,
or one for the content type.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from yarl import URL

from fuploader_dagster.errors import BadMessage
from fuploader_dagster.fetching.failures import Refused
from fuploader_dagster.processing.envelope import check_file_name

LONGEST_NAME_BYTES = 200
"""Of a name from the network. It leaves room for a number (`name~2`)."""
NO_NAME = "file"
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,10}")
_PARAMETER = re.compile(
    r";\s*(?P<key>[!#$&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<plain>[^;\s\"]*))"
)
_ENDINGS = {
    "application/gzip": ".gz",
    "application/json": ".json",
    "application/msword": ".doc",
    "application/pdf": ".pdf",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/xml": ".xml",
    "application/zip": ".zip",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/tiff": ".tiff",
    "image/webp": ".webp",
    "text/css": ".css",
    "text/csv": ".csv",
    "text/html": ".html",
    "text/javascript": ".js",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "text/xml": ".xml",
    "video/mp4": ".mp4",
    "video/mpeg": ".mpeg",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
}
"""Not those of `mimetypes`, which depend on the machine."""


def check_given_name(name: str) -> None:
    """Raise `Refused` for a name in a task that no file can have."""
    try:
        check_file_name(name or NO_NAME)
    except BadMessage as error:
        raise Refused(error.message) from None


def name_of(given: str, url: URL, headers: Mapping[str, str]) -> str:
    """The name of the file. `url`: where the answer came from; `headers`: those of the answer."""
    sent = safe_name(disposition_name(headers.get("Content-Disposition", "")))
    last = safe_name(_text(url.raw_path.rpartition("/")[2]))
    name = given or sent or last or NO_NAME
    if ending_of(name):
        return name
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    ending = ending_of(sent) or ending_of(last) or _ENDINGS.get(content_type, "")
    longer = name + ending
    return longer if len(longer.encode()) <= 255 else name


def ending_of(name: str) -> str:
    """`.jpg`, or nothing if the name has no ending."""
    stem, dot, ending = name.rpartition(".")
    found = dot + ending
    return found if stem and _ENDING.fullmatch(found) else ""


def safe_name(text: str) -> str:
    """A name from the network as a name that any file can have; empty if nothing is left."""
    kept = "".join("_" if _unusable(c) else c for c in text).strip(" ")
    if kept.startswith("."):  # no hidden files, no `..`
        kept = "_" + kept[1:]
    kept = kept.rstrip(". ")
    if not kept.strip("_"):
        return ""
    ending = ending_of(kept)
    stem = kept[: len(kept) - len(ending)].encode()[: LONGEST_NAME_BYTES - len(ending)]
    return stem.decode("utf-8", "ignore") + ending


def disposition_name(value: str) -> str:
    """The file name in a Content-Disposition; empty if there is none that can be read."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(";" + value.partition(";")[2] if ";" in value else ""):
        text = match["plain"]
        if match["quoted"] is not None:
            text = re.sub(r"\\(.)", r"\1", match["quoted"])
        found.setdefault(match["key"].lower(), text)
    if (extended := found.get("filename*")) is not None:
        charset, _, rest = extended.partition("'")
        language_and_text = rest.partition("'")
        if language_and_text[1] and charset.lower() in ("utf-8", "iso-8859-1"):
            try:
                return unquote_to_bytes(language_and_text[2]).decode(charset)
            except UnicodeDecodeError:
                pass  # then the plain one
    return _repaired(found.get("filename", ""))


def _repaired(text: str) -> str:
    """Many servers send raw UTF-8 or percent-encoded names, which the standard does not have."""
    if "%" in text:
        return _text(text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _text(quoted: str) -> str:
    return unquote_to_bytes(quoted.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")


def _unusable(character: str) -> bool:
    return character in '/\\:*?"<>|' or unicodedata.category(character) in (
        "Cc",
        "Cf",
        "Cs",
        "Zl",
        "Zp",
    )
