"""Text of others, made safe to show: messages, keys, names, answers, exceptions.

What must always hold: what is shown is one line of what a person can see. Nothing in it is obeyed
by a terminal (escape sequences, C1 controls), forges a line of a log (newlines, also Unicode's),
turns the line around (bidirectional marks), or is markup to whoever shows it. Letters of all
languages stay as they are. What a program reads (`--json`, files) is not for this module.
"""

from __future__ import annotations

import logging

MARKDOWN = frozenset("\\`*_{}[]()<>#+!|~&$:")
"""What means something in Markdown or HTML; `:` so that no bare address becomes a link."""


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


def in_markdown(text: str) -> str:
    """The text on one line, where Markdown is shown: it is text and nothing else there."""
    return "".join(f"&#{ord(c)};" if c in MARKDOWN else c for c in in_a_line(text))


class LineFormatter(logging.Formatter):
    """Makes one line of a record; only the lines of a traceback follow, indented, so that none of
    them passes for a record of its own."""

    def format(self, record: logging.LogRecord) -> str:
        first, *traceback = self._parts(record)
        return "\n".join([in_a_line(first), *(f"    {in_a_line(line)}" for line in traceback)])

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
