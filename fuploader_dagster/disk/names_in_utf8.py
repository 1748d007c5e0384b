"""Names of files are UTF-8: in messages, in archives, and on the disk.

What must always hold: no process of ours runs where Python writes names in another encoding. There
a name with one character too many would stop the drain, and what was stored under such names would
not be found by a process with another locale. So each command, worker and code location refuses to
start, and says what to set.
"""

from __future__ import annotations

import sys

from fuploader_dagster.errors import ConfigError


def require_utf8_names() -> None:
    """Raise `ConfigError` if this process writes file names in another encoding."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise ConfigError(
            f"the locale of this process has file names written in {encoding}, not in UTF-8",
            hint="set PYTHONUTF8=1 or LC_ALL=C.UTF-8 in the environment of everything that "
            "runs this package: services, containers, cron jobs, shells",
        )
