"""What came out, read without the code under test: boto3, zstandard, tarfile, json.

Every message that the broker confirmed must be in exactly one archive, or, if it is poison, among
the dead letters. One that was not confirmed may be there or not, but not twice and not changed.
"""

from __future__ import annotations

import base64
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from tests.soak.plan import body_of, content_of, is_poison, number_of


@dataclass(frozen=True)
class Verdict:
    """Counts of messages, and a few of them by name to begin looking with."""

    published: int
    stored: int
    lost: int
    second_copies: int
    corrupt: int
    dead_letters: int
    dead_letter_copies: int
    wrong_dead_letters: int
    """Dead letters that are no poison of ours."""
    archives: int
    examples: dict[str, list[str]]


def judge(
    seed: int,
    confirmed: Sequence[range],
    members: Iterator[tuple[str, str, bytes]],
    dead_letters: Iterator[bytes],
) -> Verdict:
    """`members` are (archive, name, content) of all archives; `dead_letters` are raw bodies."""
    copies: Counter[int] = Counter()
    archives: set[str] = set()
    examples: dict[str, list[str]] = {"lost": [], "corrupt": [], "second_copies": []}
    corrupt = 0
    for archive, name, content in members:
        archives.add(archive)
        number = number_of(name)
        if number is None or content != content_of(seed, number):
            corrupt += 1
            examples["corrupt"].append(f"{name} in {archive}")
            continue
        copies[number] += 1
        if copies[number] > 1:
            examples["second_copies"].append(f"{name} in {archive}")
    dead = Counter(dead_letters)
    published = lost = poison = 0
    for batch in confirmed:
        for number in batch:
            published += 1
            bad = is_poison(seed, number)
            poison += bad
            if not (dead[body_of(seed, number)] if bad else copies[number]):
                lost += 1
                examples["lost"].append(f"message {number}{', poison' if bad else ''}")
    wrong = [body for body in dead if not body.startswith((b"poison ", b"deadly "))]
    examples["wrong_dead_letters"] = [repr(body[:200]) for body in wrong]
    return Verdict(
        published=published,
        stored=len(copies),
        lost=lost,
        second_copies=copies.total() - len(copies),
        corrupt=corrupt,
        dead_letters=len(+dead),
        dead_letter_copies=dead.total() - len(+dead),
        wrong_dead_letters=len(wrong),
        archives=len(archives),
        examples={what: some[:20] for what, some in examples.items()},
    )


def members_in(client: Any, bucket: str) -> Iterator[tuple[str, str, bytes]]:
    """Archive, name and content of every file in every object of the bucket."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            body = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"]
            plain = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True)
            with plain, tarfile.open(fileobj=plain, mode="r|") as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    yield entry["Key"], member.name, file.read() if file else b""


def dead_letters_below(folder: Path) -> Iterator[bytes]:
    """Raw bodies of all dead letters. A crash may leave a torn line, whose message comes again."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                yield base64.b64decode(json.loads(line)["body"])
            except ValueError:
                continue
