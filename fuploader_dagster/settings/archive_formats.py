"""The formats that archives are packed in without a packer of one's own, by file extension.

What must always hold: an archive's name says its format. A slot's archive is named when the slot is
sealed, so it is packed in the format of that moment, whatever the settings say later.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal, Protocol

ArchiveFormat = Literal["tar.zst", "jsonl.zst", "zip", "parquet"]
ColumnType = Literal["bool", "int64", "double", "string"]

SUFFIXES: dict[ArchiveFormat, tuple[str, ...]] = {
    "tar.zst": (".tar.zst", ".tzst"),
    "jsonl.zst": (".jsonl.zst",),
    "zip": (".zip",),
    "parquet": (".parquet",),
}
"""The first one is that of new archives."""
ALL_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


def format_of(archive: str) -> ArchiveFormat:
    """The format of an archive of this name; the default for a name that says none."""
    for name, suffixes in SUFFIXES.items():
        if archive.endswith(suffixes):
            return name
    return "tar.zst"


def without_suffix(archive: str, *also: str) -> str:
    """An archive's name without the extension, whichever it was packed with. `also`: those of
    packers."""
    found = (suffix for suffix in (*also, *ALL_SUFFIXES) if archive.endswith(suffix))
    return archive.removesuffix(next(found, ""))


def _suffix_problem(archive_format: ArchiveFormat, suffix: str, *, has_packer: bool) -> str:
    """Why these settings do not go together; empty if they do."""
    if has_packer:
        return (
            f"packer and archive_format ({archive_format}) both say how an archive is made: remove "
            f"one of them"
            if archive_format != "tar.zst"
            else ""
        )
    suffixes = SUFFIXES[archive_format]
    if suffix in suffixes:
        return ""
    other = next((name for name, some in SUFFIXES.items() if suffix in some), None)
    advice = f"; set archive_format: {other}" if other else ""
    return (
        f"archive_suffix is {suffix}, but the built-in packer writes {archive_format} only as "
        f"{' or '.join(suffixes)}{advice}"
    )


def is_column(field: str) -> bool:
    """Whether a field can be a column of Parquet: our own begin with `_name`, `_content` and
    `_header_`."""
    return bool(field) and field not in ("_name", "_content") and not field.startswith("_header_")


class _Chosen(Protocol):
    """The settings that have to go together."""

    @property
    def archive_format(self) -> ArchiveFormat: ...
    @property
    def archive_suffix(self) -> str: ...
    @property
    def parquet_columns(self) -> Mapping[str, ColumnType]: ...
    @property
    def parquet_content(self) -> bool: ...


def check_format(chosen: _Chosen, *, has_packer: bool) -> None:
    """Raise `ValueError` if these settings of a pipeline do not go together."""
    name, suffix = chosen.archive_format, chosen.archive_suffix
    problem = _suffix_problem(name, suffix, has_packer=has_packer) or _parquet_problem(chosen)
    if problem:
        raise ValueError(problem)


def _parquet_problem(chosen: _Chosen) -> str:
    if chosen.archive_format != "parquet":
        needless = chosen.parquet_columns or not chosen.parquet_content
        return "parquet_columns and parquet_content need archive_format: parquet" * bool(needless)
    if find_spec("pyarrow") is None:
        return "archive_format parquet needs pyarrow: pip install 'fuploader-dagster[parquet]'"
    wrong = [field for field in chosen.parquet_columns if not is_column(field)]
    return f"{wrong[0]} cannot be a column of parquet_columns: ours are called so" if wrong else ""
