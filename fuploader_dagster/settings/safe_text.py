"""Makes text that is not ours safe to show: messages, keys, names, responses, exceptions.

Like `secret`, which hides what nobody may see, it is used by everything that logs or prints. What
must always hold: such text is shown as one visible line. It cannot command a terminal (escape
sequences, C1 controls), forge a line of a log (newlines, also Unicode's), turn the line around
(bidirectional marks), or act as markup. Letters of all languages stay as they are. Output for
programs (`--json`, files) does not pass through this module.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import Any


def in_a_line(text: str) -> str:
    """The text in one line; what is not printable is escaped as in Python (`\\x1b`, `\\u202e`)."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def in_lines(text: str) -> str:
    """The same for text whose line breaks are ours: help, a traceback."""
    return "\n".join(in_a_line(line.expandtabs()) for line in text.split("\n"))


class LineFormatter(logging.Formatter):
    """Formats a record as one line. Only the lines of a traceback follow it, indented, so that none
    of them looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        first, *rest = self._parts(record)
        return "\n".join([in_a_line(first), *(f"    {in_a_line(line)}" for line in rest)])

    def _parts(self, record: logging.LogRecord) -> list[str]:
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        parts = [self.formatMessage(record)]
        if record.exc_info:
            parts += self.formatException(record.exc_info).splitlines()
        if record.stack_info:
            parts += self.formatStack(record.stack_info).splitlines()
        return parts


def log_to_stderr(form: str, level: int = logging.INFO) -> None:
    """Let this process log to stderr in this form, one line for each record."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(form))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def make_records_safe(package: str) -> None:
    """Make each record of the package one line, for handlers that are not ours."""
    make = logging.getLogRecordFactory()
    if getattr(make, "is_safe", False):
        return

    def record(*args: Any, **values: Any) -> logging.LogRecord:
        made = make(*args, **values)
        if made.name and made.name.partition(".")[0] == package:  # Dagster makes some without one
            made.msg, made.args = in_a_line(made.getMessage()), None
        return made

    record.is_safe = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def print_uncaught(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """For `sys.excepthook`: print the traceback of a bug, whose text may come from anybody."""
    lines = "".join(traceback.format_exception(kind, error, where))
    sys.stderr.write(in_lines(lines) + "\n")
