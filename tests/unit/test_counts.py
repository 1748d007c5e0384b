"""Counts in sentences agree with their nouns: `1 message`, not `1 messages`.

Read from the source, so that a new sentence is checked without anybody adding it here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_spoken import REPOSITORY, sources

NOUNS = (
    *("alerts", "archives", "bodies", "columns", "consumers", "directories", "duplicates"),
    *("entries", "events", "files", "items", "letters", "logs", "members", "messages"),
    *("partitions", "parts", "results", "rows", "runs", "slots", "tasks", "uploads", "workers"),
)
COUNTED = re.compile(rf" (?:[a-z]+ )?(?:{'|'.join(NOUNS)})\b(?!/s)")
NEVER_ONE = {
    ("items.py", "found"),  # more than a limit
    ("publishing.py", "waiting"),
    ("tokens.py", "SHORTEST_TOKEN"),
    ("machine.py", "limit"),
    ("verified_put.py", "FEWEST_PARTS"),
    ("scrub_schedule.py", "pipeline.scrub_archives"),  # a setting, 32 by default
    ("clickhouse.py", "rows.rows"),  # beside another count, of damage
    ("source.py", "count"),
    ("publisher.py", "confirmations.outstanding"),
    ("apart.py", "names"),  # no counts
    ("recovery_schedule.py", "len(busy)"),
}
"""Files, and what stands before a plural there and need not agree with it."""
LAYERS_BELOW = (
    *("archives", "catalog", "delivery", "disk", "processing", "slots", "takeover", "testing"),
)
"""What they say is about damage: it compares two counts."""


def plural(tree: ast.AST, file: str = "") -> Iterator[tuple[int, str]]:
    """Line and source of what stands before a plural without being counted."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if not (isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant)):
                continue
            said = ast.unparse(value.value)
            is_counted = said.startswith("counted(") or (file, said) in NEVER_ONE
            if COUNTED.match(str(text.value)) and not is_counted:
                yield node.lineno, f"{{{said}}}{str(text.value)[:30]}"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('f"{n} messages wait"', ["{n} messages wait"]),
        ('f"sent {len(n):,} dead letters"', ["{len(n)} dead letters"]),
        ("f\"{counted(n, 'message')} of it\"", []),
        ('f"{n} seconds"', []),
    ],
)
def test_a_count_with_a_plural_is_noticed(code: str, expected: list[str]) -> None:
    assert [said for _, said in plural(ast.parse(code))] == expected


def test_counts_agree_with_their_nouns() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {said}"
        for path in sources()
        if not is_below(path)
        for line, said in plural(ast.parse(path.read_text("utf-8")), path.name)
    ]
    assert found == [], "use contracts.counts.counted"


def is_below(path: Path) -> bool:
    return path.relative_to(REPOSITORY).parts[1] in LAYERS_BELOW or "examples" in path.parts
