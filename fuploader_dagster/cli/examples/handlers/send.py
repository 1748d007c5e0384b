"""Puts files into the queue: python send.py CMD FILE..."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from fuploader_dagster import load_pipelines


def main(cmd: str, *files: str) -> None:
    queue = load_pipelines()["files"].source
    with closing(queue.publisher()) as publisher:
        publisher.publish((Path(file).read_bytes(), {"cmd": cmd}) for file in files)
    print(f"{queue.describe()} has confirmed {', '.join(files)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
