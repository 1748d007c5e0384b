"""Text of others is one visible line, whoever shows it, and stays readable."""

from __future__ import annotations

import ast
import io
import logging
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import fuploader_dagster
from fuploader_dagster.settings import safe_text
from fuploader_dagster.settings.safe_text import LineFormatter, in_a_line, in_lines

PACKAGE = Path(fuploader_dagster.__file__).parent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, über, 文件, 🙂, [/red] <b> `x`", "plain, über, 文件, 🙂, [/red] <b> `x`"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\r\nc", "a\\nb\\r\\nc"),
        ("a\u2028b\u2029c\x85d\x0be\x0cf", "a\\u2028b\\u2029c\\x85d\\x0be\\x0cf"),
        ("fine\u202egnp.exe \u2066 \u200f", "fine\\u202egnp.exe \\u2066 \\u200f"),
        ("\ud800", "\\ud800"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_escaped_and_all_else_stays(text: str, shown: str) -> None:
    assert in_a_line(text) == shown


def test_nothing_of_unicode_that_is_obeyed_or_ends_a_line_gets_through() -> None:
    shown = in_a_line("".join(map(chr, range(sys.maxunicode + 1))))
    assert len(shown.splitlines()) == 1
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_lines_that_are_ours_stay_lines() -> None:
    assert in_lines("a\x1b\n  b\u202e") == "a\\x1b\n  b\\u202e"


def test_a_record_is_one_line_and_a_traceback_forges_none() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("some")
    logger.addHandler(handler)
    logger.warning("unknown id %s", "x\nERROR all data lost\x1b[2J")
    try:
        raise ValueError("a\nERROR all data lost\x1b[2J")
    except ValueError:
        logger.exception("failed")
    text = out.getvalue()
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line.startswith("ERROR")] == ["ERROR failed"]
    assert "WARNING unknown id x\\nERROR all data lost\\x1b[2J" in text


def test_commands_print_only_through_the_console() -> None:
    """Neither `print` nor rich nor `typer.echo` beside it: what it is given it makes safe."""
    found = []
    for path in [*PACKAGE.glob("*/*.py"), *PACKAGE.glob("*.py")]:
        if path.name in ("console.py", "safe_text.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", "") or "", *(one.name for one in node.names)]
                if any(name.partition(".")[0] == "rich" for name in names):
                    found.append((path.name, node.lineno, "rich"))
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("print", "typer.echo", "typer.secho", "console.print", "errors.print"):
                    found.append((path.name, node.lineno, name))
    assert found == []


def test_records_of_the_package_are_one_line_for_handlers_of_others_too() -> None:
    """As in a code server, whose handlers are Dagster's. In a process of its own: it stays so."""
    code = (
        "import logging\n"
        "from fuploader_dagster.settings.safe_text import make_records_safe\n"
        "make_records_safe('fuploader_dagster'); make_records_safe('fuploader_dagster')\n"
        "logging.basicConfig(format='%(message)s')\n"
        "logging.getLogger('fuploader_dagster.x').warning('100%% %s', 'a\\x1b[2J\\nERROR b')\n"
        "logging.getLogger('others').warning('%s', 'a\\nb')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["100% a\\x1b[2J\\nERROR b", "a", "b"]


def test_records_without_a_name_are_left_alone() -> None:
    """Dagster makes one for each message of a run, to see what attributes records have."""
    before = logging.getLogRecordFactory()
    try:
        safe_text.make_records_safe("fuploader_dagster")
        assert logging.makeLogRecord({}).__dict__["name"] is None
    finally:
        logging.setLogRecordFactory(before)
