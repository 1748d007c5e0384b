"""The parser of the pipeline that has one: copied to where an operator keeps strategies.

It is slow for some messages, and ends the process for a few, as an extension in C would.
"""

import os
import re
import signal
import time

from fuploader_dagster.processing.producer import DecodedFilePayload, parse_file_message

_PAUSE = re.compile(rb'\{"pause": ([0-9.]+)')


def parse(body: bytes) -> DecodedFilePayload:
    if body.startswith(b"deadly "):
        os.kill(os.getpid(), signal.SIGKILL)
    if pause := _PAUSE.match(body):
        time.sleep(float(pause[1]))
    return parse_file_message(body)
