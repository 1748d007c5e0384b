"""Ports that tests give to their servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ports

TAKES_ONE = """
import sys
from tests.servers import ports
ports.RANGE = range(int(sys.argv[1]), int(sys.argv[1]) + 2)
print(ports.free_port(), flush=True)
sys.stdin.read()
"""


def test_no_two_processes_are_given_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing listens there: a server that was killed comes back."""
    first = ports.free_port()
    monkeypatch.setattr(ports, "RANGE", range(first, first + 2))
    other = subprocess.Popen(
        [sys.executable, "-c", TAKES_ONE, str(first)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        taken = other.stdout.readline().strip()
        assert taken in (str(first + 1), "")  # "": somebody else has that one
        with pytest.raises(AssertionError, match="no free port"):
            ports.free_port()
        other.communicate("")
