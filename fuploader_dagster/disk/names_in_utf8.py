"""File names are UTF-8: in messages, in archives, and on the disk.

What must always hold: none of our processes runs where Python writes names in another encoding.
There a single character outside that encoding would stop the drain, and a process with another
locale would not find the files. So each command, worker and code location refuses to start, and
says what to set.
"""

from __future__ import annotations

import sys

from fuploader_dagster.errors import ConfigError


def require_utf8_names() -> None:
    """Raise `ConfigError` if this process writes file names in another encoding."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise ConfigError(
            f"the locale of this process makes it write file names in {encoding}, not in UTF-8",
            hint="set PYTHONUTF8=1 or LC_ALL=C.UTF-8 in the environment of everything that "
            "runs this package: services, containers, cron jobs, shells",
        )
