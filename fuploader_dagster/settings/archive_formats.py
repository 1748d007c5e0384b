"""The formats that archives are packed in without a packer of one's own, by file extension.

What must always hold: an archive's name says its format. A slot's archive is named when the slot is
sealed, so it is packed in the format of that moment, whatever the settings say later.
"""

from __future__ import annotations

from typing import Literal

ArchiveFormat = Literal["tar.zst", "jsonl.zst", "zip"]

SUFFIXES: dict[ArchiveFormat, tuple[str, ...]] = {
    "tar.zst": (".tar.zst", ".tzst"),
    "jsonl.zst": (".jsonl.zst",),
    "zip": (".zip",),
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


def suffix_problem(archive_format: ArchiveFormat, suffix: str, *, has_packer: bool) -> str:
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
