"""Posts messages at a steady rate, whatever the answers do, and prints how long they took.

    python -m benchmarks.programs.paced_posts PORT RATE SECONDS TOKEN

Prints JSON: seconds of each answer from the moment at which it was due, and how many had which
status.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

CONNECTIONS = 32
SETTLING_SECONDS = 1.0
"""Answers of the first second do not count."""


async def main(port: int, rate: int, seconds: float, token: str) -> None:
    took: list[float] = []
    statuses: Counter[str] = Counter()
    begin = time.monotonic() + 0.5
    numbers = iter(range(int(rate * (seconds + SETTLING_SECONDS))))

    async def lane() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            body = json.dumps({"rec": number, "text": "x" * 900}).encode()
            writer.write(
                f"POST /docs/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            fields = [line.split(b":") for line in head.lower().split(b"\r\n")]
            (length,) = (int(field[1]) for field in fields if field[0] == b"content-length")
            await reader.readexactly(length)
            if number / rate >= SETTLING_SECONDS:
                took.append(time.monotonic() - due)
                statuses[head.split()[1].decode()] += 1
        writer.close()

    await asyncio.gather(*(lane() for _ in range(CONNECTIONS)))
    print(json.dumps({"seconds": sorted(took), "statuses": statuses}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
