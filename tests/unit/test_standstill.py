"""A test that stands still outside Python does not hold up the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import ctypes
import pytest

@pytest.mark.timeout(5)
def test_that_stands_still():
    mutex = ctypes.create_string_buffer(256)
    lock = ctypes.PyDLL(None).pthread_mutex_lock  # keeps Python's own lock meanwhile
    while True:
        lock(mutex)

def test_that_does_not():
    pass
"""
PYTEST = ("-m", "pytest", "-v", "-n1", "-ptests.conftest", "-pno:randomly", "-pno:cacheprovider")


def test_a_test_that_no_signal_reaches_ends_its_process_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    repository = Path(__file__).parents[2]
    file = tmp_path / "test_two.py"
    file.write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 300\n")
    done = subprocess.run(
        [sys.executable, *PYTEST, f"--rootdir={tmp_path}", str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "crashed while running 'test_two.py::test_that_stands_still'" in said
    assert "PASSED test_two.py::test_that_does_not" in said
    assert 'test_two.py", line 10 in test_that_stands_still' in said
