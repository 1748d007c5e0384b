"""Which addresses a task names.

What must always hold: a task gives the same addresses in the same order each time. One that cannot
be read as a whole raises `BadItem`; that an address itself is unusable is found out later, and
concerns that address alone.

Three forms:

- `urls: FIELD`: the task is JSON, and this field (`task_info`, or a path such as `job.files`) has a
  list. An element is an address, or an object with `url` and perhaps `fn` or `name`.
- `url: "https://host/{field}.jpg"`: the task is JSON; its fields make one address. What is put in
  is percent-encoded, so it can change neither the host nor the folder.
- Neither: the task is text with an address a line, after it perhaps white space and a name. Empty
  lines and lines that begin with `#` are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from fuploader_dagster.errors import BadItem

NAME_KEYS = ("fn", "name")
_FIELD = re.compile(r"\{([^{}]*)\}")


class Address(NamedTuple):
    """What is to be fetched, and what the file is to be called."""

    url: str
    name: str = ""
    """Empty: the name comes from the answer."""


def addresses_of(
    content: bytes, *, urls: str | None = None, url: str | None = None, most: int
) -> list[Address]:
    """The addresses of a task, at most `most`. Raises `BadItem`."""
    if url is not None:
        found = [Address(_filled(url, _json(content)))]
    elif urls is not None:
        found = list(_listed(urls, _json(content)))
    else:
        found = list(_lines(content))
    if len(found) > most:
        raise BadItem(
            f"the task has {len(found):,} addresses; max_files is {most:,}",
            hint="raise max_files if such tasks are intended",
        )
    return found


def rest_of(content: bytes, positions: Sequence[int], *, urls: str | None = None) -> bytes:
    """The task with only the addresses at these positions. It must have been read before."""
    if urls is None:
        lines = [f"{one.url}\t{one.name}".rstrip() for one in _lines(content)]
        return "".join(f"{lines[position]}\n" for position in positions).encode()
    task = _json(content)
    *outer, last = urls.split(".")
    around = _at(task, ".".join(outer)) if outer else task
    value = around[last] if isinstance(around[last], list) else [around[last]]
    around[last] = [value[position] for position in positions]
    return json.dumps(task, ensure_ascii=False).encode("utf-8", "surrogatepass")


def template_fields(url: str) -> list[str]:
    """The fields that a template names."""
    return _FIELD.findall(url)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadItem(f"the task is not JSON: {error}") from error


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            raise BadItem(f"the task has no field {path}")
        value = value[part]
    return value


def _filled(template: str, task: Any) -> str:
    def field(match: re.Match[str]) -> str:
        value = _at(task, match[1])
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise BadItem(f"the task's field {match[1]} is neither text nor a whole number")
        text = quote(str(value), safe="", errors="surrogatepass")
        return text.replace(".", "%2E") if text in (".", "..") else text

    return _FIELD.sub(field, template)


def _listed(field: str, task: Any) -> Iterator[Address]:
    value = _at(task, field)
    for number, one in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(one, str):
            yield Address(one)
            continue
        if not isinstance(one, dict) or not isinstance(one.get("url"), str):
            raise BadItem(
                f"element {number} of {field} is neither an address nor an object with `url`"
            )
        name = next((one[key] for key in NAME_KEYS if one.get(key) not in (None, "")), "")
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise BadItem(f"the name in element {number} of {field} is not text")
        yield Address(one["url"], str(name))


def _lines(content: bytes) -> Iterator[Address]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadItem(f"the task is not a list of addresses in UTF-8: {error}") from error
    for line in text.splitlines():
        url, _, name = line.strip().partition("\t") if "\t" in line else _split(line)
        if url and not url.startswith("#"):
            yield Address(url.strip(), name.strip())


def _split(line: str) -> tuple[str, str, str]:
    return line.strip().partition(" ")
