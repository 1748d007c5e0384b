"""What is the same for all child processes of ours: what they are given, and how they ended."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """The environment that a child process of ours gets."""
    return {**os.environ, "PYTHONUTF8": "1"}  # `python -X utf8` is not inherited


def import_path() -> list[str]:
    """`sys.path` for a child process, which may be in another working directory."""
    return [path or str(Path.cwd()) for path in sys.path]


def exit_in_words(code: int) -> str:
    """How a process ended. `code` is as in `subprocess`: negative for a signal."""
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL): by a person, or by the kernel for lack of memory"
    if code < 0:
        return f"signal {-code} ({signal.strsignal(-code)})"
    return f"exit code {code}"
