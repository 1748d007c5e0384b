"""The exit codes of all commands.

0  done
1  a bug, with its traceback, or the user said no
2  wrong usage or wrong configuration
3  something does not answer, or the disk is full: try again later
4  something refuses us, or slots, members or messages were left out: a person has to act
5  damaged data; what is intact was processed
6  nothing is wrong, but nothing proves the bytes either (`verify` only)
"""

from __future__ import annotations

from fuploader_dagster.errors import ConfigError, DamagedData, FuploaderError, TemporaryError

WRONG_USAGE, TRY_LATER, REFUSED, DAMAGED, UNPROVEN = 2, 3, 4, 5, 6


def exit_code_of(error: FuploaderError) -> int:
    """The exit code of a command that ended with this error."""
    if isinstance(error, ConfigError):
        return WRONG_USAGE
    if isinstance(error, TemporaryError):
        return TRY_LATER
    return DAMAGED if isinstance(error, DamagedData) else REFUSED
