"""Text of others, made safe to show: messages, keys, names, answers, exceptions.

What must always hold: what is shown is one line of what a person can see. Nothing in it is obeyed
by a terminal (escape sequences, C1 controls), forges a line of a log (newlines, also Unicode's),
turns the line around (bidirectional marks), or is markup to whoever shows it. Letters of all
languages stay as they are. What a program reads (`--json`, files) is not for this module.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import Any


def in_a_line(text: str) -> str:
    """The text on one line: what is not printable is escaped as in Python (`\\x1b`, `\\u202e`)."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def in_lines(text: str) -> str:
    """The same for each of several lines, where the lines are ours: help, a traceback."""
    return "\n".join(in_a_line(line.expandtabs()) for line in text.split("\n"))


def in_code(text: str) -> str:
    """The text as code in Markdown, also in a cell of a table: no link, image or HTML in it is one.

    A backtick would end it, so it becomes an apostrophe.
    """
    line = in_a_line(text).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line.strip() else ""


class LineFormatter(logging.Formatter):
    """Makes one line of a record; only the lines of a traceback follow, indented, so that none of
    them passes for a record of its own."""

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
    """Let this process log to stderr, a line for each record, in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(form))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def make_records_safe(package: str) -> None:
    """Make one line of each record of a package, where others own the handlers and their forms."""
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
    """For `sys.excepthook`: the traceback of what nobody foresaw, whose text may be anybody's."""
    lines = "".join(traceback.format_exception(kind, error, where))
    sys.stderr.write(in_lines(lines) + "\n")
