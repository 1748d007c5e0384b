"""Lists of names in settings: of fields, of headers."""

from __future__ import annotations

from typing import Any

from fuploader_dagster.disk.header_text import folded


def comma_separated(value: Any) -> Any:
    """`file_name, id` as a list: environment variables cannot hold one."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def each_header_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len({folded(name) for name in names}) != len(names):
        raise ValueError("two of the names mean the same header: case, - and _ do not matter")
    return names
