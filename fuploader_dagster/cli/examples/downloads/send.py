"""Puts tasks into the queue: python send.py COUNT"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from fuploader_dagster import load_pipelines

FILES = ("README.md", "send.py", "asker.py", "missing.txt")


def tasks(count: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for number in range(count):
        files = [{"fn": name, "url": f"http://127.0.0.1:8002/{name}"} for name in FILES]
        yield json.dumps({"task_id": f"task-{number}", "task_info": files}).encode(), {}


def main(count: str) -> None:
    queue = load_pipelines()["batches"].source
    with closing(queue.publisher()) as publisher:
        print(f"{queue.describe()} has confirmed tasks: {publisher.publish(tasks(int(count)))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
