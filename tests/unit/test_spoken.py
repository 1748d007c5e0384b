"""What errors, hints and log lines name exists: commands, their options, settings, pages.

Read from the source, so that a new sentence is checked without anybody adding it here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

from fuploader_dagster.cli import app
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.settings.loading import KINDS
from fuploader_dagster.slots.sealing import Seal
from tools import settings_reference

REPOSITORY = Path(__file__).parents[2]
COMMAND = re.compile(r"\bfuploader ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)((?: --?[a-z][a-z-]*)*)")
SETTING = re.compile(r"(?<![\w./%{?&-])[a-z]+(?:_[a-z0-9]+)+(?![\w./(%])")
PAGE = re.compile(r"\b(?:docs/[\w./-]+|[A-Z]{3,}\.md)\b")
QUERY = re.compile(
    r"(?i)\n|\b(select|insert (or \w+ )?into|update \w+ set|delete from|pragma)\b|KEYS\["
    r"|\b(create|alter) (table|virtual|temp|unique|index|trigger|view)"
)
"""Statements in SQL or Lua, which name columns."""
OTHER_NAMES = {
    "content_type",  # of an envelope
    "message_id",  # of AMQP
    "max_message_size",  # of RabbitMQ
    "fuploader_dagster",
    "has_journal",  # of ext4
    "load_reference",  # the example in the contract of sources
    "statement_timeout",  # of PostgreSQL
    *("binlog_format", "innodb_flush_log_at_trx_commit", "innodb_lock_wait_timeout"),  # of MySQL
    *("max_allowed_packet", "sql_mode", "time_zone", "wait_timeout"),
    "pg_hba",  # of PostgreSQL
    *("max_memory_usage", "insert_quorum", "query_log"),  # of ClickHouse
    *("lightweight_mutation_projection_mode", "non_replicated_deduplication_window"),
    *("insufficient_scope", "invalid_token"),  # of bearer tokens, RFC 6750
    *("node_exporter", "in_hand"),  # of Prometheus, and a label of a metric
    "dev_command",  # of Dagster, whose warning is silenced
}


def sources() -> list[Path]:
    found = {
        path.resolve()  # the package has links to the other two
        for folder in ("fuploader_dagster", "resources", "sensors")
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    return sorted(found)


def literals(tree: ast.AST) -> Iterator[str]:
    """All text in the code, pieces of one sentence put together, without docstrings."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        text = _text(node)
        if text is not None:
            yield text
        else:
            yield from literals(node)


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) or "%" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [_text(node.left), _text(node.right)]
        return None if parts == [None, None] else "".join(part or "%" for part in parts)
    return None


@cache
def sentences() -> list[tuple[str, str]]:
    """Each with the module that says it."""
    return [
        (path.name, text)
        for path in sources()
        for text in literals(ast.parse(path.read_text("utf-8")))
        if " " in text
    ]


@cache
def commands() -> dict[str, set[str]]:
    """Every command of `fuploader`, groups included, with its options."""
    found: dict[str, set[str]] = {}
    for name, command in app.loaded_commands().items():
        found[name] = {option for one in command.params for option in one.opts}
        for inner, second in getattr(command, "commands", {}).items():
            options = {option for one in second.params for option in one.opts}
            found[f"{name} {inner}"] = options
    return found


def unknown_commands(text: str) -> list[str]:
    known = commands()
    wrong = []
    for match in COMMAND.finditer(text):
        words, options = match[1].split(), match[2].split()
        command = match[1] if match[1] in known else words[0]
        is_group = any(one.startswith(f"{words[0]} ") for one in known)
        if command not in known:
            wrong.append(f"fuploader {words[0]}")
        elif is_group and len(words) > 1 and match[1] not in known:
            wrong.append(f"fuploader {match[1]}")
        else:
            wrong += [f"{command} {o}" for o in options if o not in {*known[command], "--help"}]
    return wrong


def known_names() -> set[str]:
    """Settings and kinds, what a seal and a partition key say (for templates), `OTHER_NAMES`."""
    settings = set(re.findall(r"`([a-z0-9_]+)`", settings_reference.page()))
    seal = {field.name for field in msgspec.structs.fields(Seal)}
    kinds = {kind for known in KINDS.values() for kind in known}
    return settings | kinds | seal | set(PartitionKey.__dataclass_fields__) | OTHER_NAMES


def test_the_source_is_read_at_all() -> None:
    """Else the tests below would hold of nothing."""
    said = sentences()
    assert len(said) > 1000
    assert sum(bool(COMMAND.search(text)) for _, text in said) > 20
    assert sum(bool(SETTING.search(text)) for _, text in said) > 50


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("try fuploader recover now", ["fuploader recover"]),
        ("try `fuploader catalog rebuild --anew`", []),
        ("try fuploader catalog mend", ["fuploader catalog mend"]),
        ("fuploader verify tells which", []),
        ("fuploader ls --newest", ["ls --newest"]),
        ("fuploader doctor --help", []),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(text: str, wrong: list[str]) -> None:
    assert unknown_commands(text) == wrong


def test_every_command_that_a_sentence_names_exists() -> None:
    wrong = [(module, one) for module, text in sentences() for one in unknown_commands(text)]
    assert wrong == []


def test_every_setting_that_a_sentence_names_exists() -> None:
    known = known_names()
    wrong = [
        (module, name)
        for module, text in sentences()
        if not QUERY.search(text)
        for name in SETTING.findall(text)
        if name not in known
    ]
    assert wrong == []


def test_every_page_that_a_sentence_or_a_docstring_names_exists() -> None:
    wrong = [
        (path.name, page)
        for path in sources()
        for page in PAGE.findall(path.read_text("utf-8"))
        if not list(REPOSITORY.glob(f"{page.rstrip('.')}*"))  # decisions go by their number
    ]
    assert wrong == []


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda p: p.name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    code = re.findall(r"`([^`\n]+)`|^    (.+)$", page.read_text("utf-8"), re.M)
    assert [one for pair in code for one in unknown_commands("".join(pair))] == []


ASSEMBLED = {
    "could not connect to",
    "could not receive from",
    "could not use embedded queue in",
    ": database disk image is malformed",  # SQLite's
    "stays here: a message of",
    "slot-#.lock is held by process #",
}
"""Quoted pieces of sentences that the source puts together from others."""


def test_every_sentence_that_the_page_of_troubles_quotes_is_said() -> None:
    """Pieces of three words or more; figures and whatever is filled in do not count."""
    page = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    rows = [row.split(" | ") for row in re.findall(r"^\| .* \|$", page, re.M)]
    seen = " ".join(" ".join(row[:2]) for row in rows if len(row) == 4)
    quoted = [part for quote in re.findall(r"`([^`]+)`", seen) for part in quote.split("...")]
    pieces = {re.sub(r"\b(N|\d+)\b", "#", part).strip() for part in quoted}
    filled = re.compile(r"%(\.\d+)?[sdf]|%|\d[\d,]*")
    said = "\n".join(filled.sub("#", text) for _, text in sentences())
    missing = {one for one in pieces if len(one.split()) >= 3 and one not in said}
    assert len(pieces) > 30
    assert missing <= ASSEMBLED
