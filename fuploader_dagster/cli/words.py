"""Numbers as people read them: counts that agree with their noun, sizes, ages. `--json` has them
exactly, in bytes and seconds."""

from __future__ import annotations

from fuploader_dagster.contracts.counts import counted

__all__ = ["age", "counted", "size"]

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))


def size(size_bytes: int) -> str:
    """`999 bytes`, `1.5 KiB`, `67.5 GiB`."""
    if size_bytes < 1024:
        return counted(size_bytes, "byte")
    power = min((size_bytes.bit_length() - 1) // 10, len(_UNITS))
    if round(size_bytes / 1024**power, 1) >= 1024 and power < len(_UNITS):
        power += 1
    return f"{size_bytes / 1024**power:,.1f} {_UNITS[power - 1]}"


def age(seconds: float) -> str:
    """`12 s`, `3 min`, `5 h`, `12 d`."""
    for span, unit in _SPANS:
        if seconds >= span:
            return f"{seconds / span:,.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
