"""Errors that nobody foresaw, in a sink or a user's function, told without their text.

What must always hold: the text of such an error is neither logged nor raised. It may quote a value
of a row.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from fuploader_dagster.errors import FuploaderError, SinkUnavailable

log = logging.getLogger(__name__)


def type_and_place(error: BaseException) -> str:
    """What an error is and where it was raised."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in line {where.lineno} of {where.filename.rpartition('/')[2]}"


@contextmanager
def told_without_text(sink: str) -> Iterator[None]:
    """Around what a sink does: an error of its own code becomes `SinkUnavailable`."""
    try:
        yield
        return
    except (FuploaderError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  it is raised below, without its text
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("unexpected %s in sink %s:\n%s", type(error).__name__, sink, frames)
        what = f"sink {sink} failed unexpectedly: {type_and_place(error)}"
    raise SinkUnavailable(what, hint="the log has the traceback; nothing was stored")
