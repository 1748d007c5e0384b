"""Custom packers as files beside a configuration, for runs that must be caught while they pack."""

from __future__ import annotations

HOLD = "hold"


def held_packer(note: str) -> str:
    """The source of a `pack` that writes its process id to the file `note` beside itself, and packs
    when there is no file `HOLD` there."""
    return f"""
import os, subprocess, time
from pathlib import Path

HERE = Path(__file__).parent

def pack(folder: Path) -> Path:
    (HERE / {note!r}).write_text(str(os.getpid()))
    while (HERE / {HOLD!r}).exists():
        time.sleep(0.05)
    made = folder.with_suffix(".tar.zst")
    names = sorted(os.listdir(folder))
    subprocess.run(["tar", "--zstd", "-cf", made, "-C", folder, *names], check=True)
    return made
"""
