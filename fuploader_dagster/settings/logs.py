"""How processes of ours log to stderr: one form for all of them, as text or as JSON.

    2026-11-27 19:30:00,123 INFO worker 0 [4711] fuploader_dagster.slots.slot: sealed ...
    {"time": "2026-11-27T19:30:00.123+00:00", "level": "INFO", "process": "worker 0", "pid": 4711,
     "logger": "fuploader_dagster.slots.slot", "message": "sealed ..."}        (in one line)

What must always hold: a record is a line (as text, the lines of a traceback follow it, indented),
and nothing in it commands a terminal. The level is that of this package alone: others say things at
DEBUG that nobody may read, such as signed requests.

Form and level are in the environment, where child processes find them: `FUPLOADER_LOG_FORMAT` and
`FUPLOADER_LOG_LEVEL`, which the options of the command line set. What Dagster itself logs, it logs
in its own form.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone
from enum import Enum

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.safe_text import LineFormatter, in_a_line, in_lines

FORMAT_VARIABLE = "FUPLOADER_LOG_FORMAT"
LEVEL_VARIABLE = "FUPLOADER_LOG_LEVEL"
PACKAGE = __name__.partition(".")[0]


class LogFormat(str, Enum):
    """How a record looks."""

    text = "text"
    json = "json"


class LogLevel(str, Enum):
    """The least that is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def choose(form: LogFormat | None, level: LogLevel | None) -> None:
    """Set what options say, for this process and its children. Raises `ConfigError` if the
    environment says something that cannot be."""
    if form is not None:
        os.environ[FORMAT_VARIABLE] = form.value
    if level is not None:
        os.environ[LEVEL_VARIABLE] = level.value
    for variable, kind in ((FORMAT_VARIABLE, LogFormat), (LEVEL_VARIABLE, LogLevel)):
        known = [one.value for one in kind]
        said = os.environ.get(variable, known[0]).lower()
        if said not in known:
            raise ConfigError(
                f"{variable} is {said!r}, which cannot be", hint=f"one of {', '.join(known)}"
            )


def log_as(process: str) -> None:
    """Log to stderr as the process of this name, in the form and from the level that are chosen."""
    handler = logging.StreamHandler()
    if os.environ.get(FORMAT_VARIABLE, "").lower() == LogFormat.json.value:
        handler.setFormatter(JsonFormatter(process))
    else:
        form = f"%(asctime)s %(levelname)s {process} [%(process)d] %(name)s: %(message)s"
        handler.setFormatter(LineFormatter(form))
    said = os.environ.get(LEVEL_VARIABLE, "").upper()
    level = getattr(logging, said) if said.lower() in LogLevel.__members__ else logging.INFO
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)
    logging.getLogger(PACKAGE).setLevel(level)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, tz=timezone.utc)
        said = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": in_a_line(record.getMessage()),
        }
        if record.exc_info:
            said["trace"] = in_lines(self.formatException(record.exc_info))
        return json.dumps(said, ensure_ascii=False)
