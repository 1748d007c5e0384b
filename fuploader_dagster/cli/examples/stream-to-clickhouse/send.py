"""Puts flat dicts into the stream, as any client of Redis does: python send.py COUNT"""

from __future__ import annotations

import os
import sys

import redis


def main(count: str) -> None:
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
        for number in range(int(count)):
            entry = {
                "rec_id": f"rec-{number:06d}",
                "task_for": "demo",
                "function_type": "store",
                "data": f"number {number}",
            }
            client.xadd("BUFF:flow:in", entry)
    print(f"{count} more in the stream BUFF:flow:in")


if __name__ == "__main__":
    main(*sys.argv[1:])
