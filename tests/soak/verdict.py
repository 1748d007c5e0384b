"""What came out, read without the code under test: boto3, zstandard, tarfile, json.

Every message that the broker confirmed must be in exactly one archive, or, if it is poison, among
the dead letters. One that was not confirmed may be there or not, but not twice and not changed.
Where a pipeline processes, each file that is stored has its results beside it, once, or one dead
letter of the processing.
"""

from __future__ import annotations

import base64
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from tests.soak.plan import (
    body_of,
    content_of,
    is_poison,
    is_unprocessable,
    name_of,
    number_of,
    results_of,
)

RESULTS = "results/"


class Letter(NamedTuple):
    """A dead letter."""

    body: bytes
    item: str = ""
    """Its name, if it is a file that could not be processed."""
    stage: str = ""
    partition: str = ""
    position: int = -1
    """Where the file is stored: the number of originals before it in its archive."""


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
    """Dead letters that are no poison of ours, and no file that cannot be processed."""
    results: int
    lost_results: int
    """Also files that cannot be processed and have no dead letter."""
    second_results: int
    wrong_results: int
    archives: int
    examples: dict[str, list[str]]


def judge(
    seed: int,
    confirmed: Sequence[range],
    members: Iterator[tuple[str, str, bytes]],
    dead_letters: Iterator[Letter],
) -> Verdict:
    """`members` are (archive, name, content) of all archives."""
    copies: Counter[int] = Counter()
    results: Counter[tuple[str, str, bytes]] = Counter()
    wanted: Counter[tuple[str, str, bytes]] = Counter()
    originals: Counter[str] = Counter()
    places: dict[str, tuple[str, int]] = {}
    examples: dict[str, list[str]] = {"lost": [], "corrupt": [], "second_copies": []}
    corrupt = 0
    for archive, name, content in members:
        originals[archive] += 0  # there it is, even if it holds results only
        if name.startswith(RESULTS):
            results[archive, name, content] += 1
            continue
        position = originals[archive]
        originals[archive] += 1
        number = number_of(name)
        if number is None or content != content_of(seed, number):
            corrupt += 1
            examples["corrupt"].append(f"{name} in {archive}")
            continue
        copies[number] += 1
        if copies[number] > 1:
            examples["second_copies"].append(f"{name} in {archive}")
            continue
        places[name] = archive, position
        wanted.update((archive, *one) for one in results_of(seed, number))
    letters = list(dead_letters)
    dead = Counter(letter.body for letter in letters if not letter.item)
    failing = {name_of(number) for number in copies if is_unprocessable(number)}
    items = [letter for letter in letters if letter.item]
    right = [
        letter
        for letter in items
        if letter.item in failing and _is_right(letter, seed, *places[letter.item])
    ]
    unprocessed = Counter(letter.item for letter in right)
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
    examples["wrong_dead_letters"] += sorted(one.item for one in items if one not in right)
    lost_results = [name for _, name, _ in wanted - results] + sorted(failing - unprocessed.keys())
    wrong_results = [f"{one[1]} in {one[0]}" for one in results.keys() - wanted.keys()]
    second_results = [f"{one[1]} in {one[0]}" for one, count in results.items() if count > 1]
    examples.update(
        lost_results=lost_results, wrong_results=wrong_results, second_results=second_results
    )
    return Verdict(
        published=published,
        stored=len(copies),
        lost=lost,
        second_copies=copies.total() - len(copies),
        corrupt=corrupt,
        dead_letters=len(+dead),
        dead_letter_copies=dead.total() - len(+dead) + unprocessed.total() - len(unprocessed),
        wrong_dead_letters=len(wrong) + len(items) - len(right),
        results=results.total(),
        lost_results=len(lost_results),
        second_results=len(second_results),
        wrong_results=len(wrong_results),
        archives=len(originals),
        examples={what: some[:20] for what, some in examples.items()},
    )


def _is_right(letter: Letter, seed: int, archive: str, position: int) -> bool:
    """Whether the letter of a file says what the file is, and where it is stored."""
    number = number_of(letter.item)
    return (
        number is not None
        and letter.body == content_of(seed, number)
        and (letter.stage, letter.position) == ("process", position)
        and bool(letter.partition)
        and letter.partition in archive
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


def dead_letters_below(folder: Path) -> Iterator[Letter]:
    """All dead letters. A crash may leave a torn line, whose message comes again."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                letter = json.loads(line)
                item = letter.get("item") or {}
                body = base64.b64decode(letter["body"])
                said = {key: item[key] for key in ("stage", "partition", "position") if key in item}
                yield Letter(body, item.get("name", ""), **said)
            except ValueError:
                continue
