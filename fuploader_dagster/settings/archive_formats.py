"""The formats that archives are packed in without a packer of one's own, by file extension.

What must always hold: an archive's name says its format. A slot's archive is named when the slot is
sealed, so it is packed in the format of that moment, whatever the settings say later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Literal, Protocol

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


class _Chosen(Protocol):
    """The settings that have to go together."""

    @property
    def archive_format(self) -> ArchiveFormat: ...
    @property
    def archive_suffix(self) -> str: ...
    @property
    def packer(self) -> Callable[..., Any] | None: ...
    @property
    def parquet_columns(self) -> Mapping[str, ColumnType]: ...
    @property
    def parquet_content(self) -> bool: ...


def is_column(field: str) -> bool:
    """Whether a field can be a column of Parquet. Ours are `_name`, `_content` and `_header_...`,
    in any case: many programs that read Parquet make no difference."""
    folded = field.lower()
    ours = folded in ("_name", "_content") or folded.startswith("_header_")
    return bool(field) and not ours


def named_for_format(values: Any) -> Any:
    """Settings as they are given, with the format's own extension unless they have one."""
    if isinstance(values, dict) and "archive_suffix" not in values:
        chosen = values.get("archive_format")
        suffixes = [some for name, some in SUFFIXES.items() if name == chosen]
        if suffixes:
            values = {**values, "archive_suffix": suffixes[0][0]}
    return values


def check_format(chosen: _Chosen) -> None:
    """Raise `ValueError` if these settings of a pipeline do not go together."""
    problem = _suffix_problem(chosen) or _parquet_problem(chosen)
    if problem:
        raise ValueError(problem)


def why_unreadable(chosen: _Chosen) -> str:
    """Why files cannot be read back from the archives of a pipeline; empty if they can."""
    if chosen.packer is not None and chosen.archive_suffix not in SUFFIXES["tar.zst"]:
        return "because only your packer knows its form (archive_suffix)"
    return "" if chosen.parquet_content else "which has only columns (parquet_content: false)"


def _suffix_problem(chosen: _Chosen) -> str:
    """Why these settings do not go together; empty if they do."""
    archive_format, suffix = chosen.archive_format, chosen.archive_suffix
    if chosen.packer is not None:
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


def _parquet_problem(chosen: _Chosen) -> str:
    if chosen.archive_format != "parquet":
        needless = chosen.parquet_columns or not chosen.parquet_content
        return "parquet_columns and parquet_content need archive_format: parquet" * bool(needless)
    if find_spec("pyarrow") is None:
        return "archive_format parquet needs pyarrow: pip install 'fuploader-dagster[parquet]'"
    wrong = [field for field in chosen.parquet_columns if not is_column(field)]
    return f"{wrong[0]} cannot be a column of parquet_columns: ours are called so" if wrong else ""
