"""Diagnosis: what a look at one thing that a pipeline stands on has found.

Looks are made by whoever knows the thing (a backend's `examine`, `doctor` for the rest). A look
never raises for what it is there to find, changes nothing that stays, and takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fuploader_dagster.errors import FuploaderError, TemporaryError

Verdict = Literal["good", "warning", "unreachable", "wrong"]
"""`warning`: it runs, but a person should know; `unreachable`: it may pass by itself; `wrong`: a
person has to act first."""


@dataclass(frozen=True)
class Diagnosis:
    """One line of `fuploader doctor`."""

    check: str
    """What was looked at, in a word or two."""
    verdict: Verdict
    found: str
    hint: str = ""
    """What to do; never empty unless the verdict is good."""


def trouble(check: str, error: FuploaderError) -> Diagnosis:
    """What an error of ours means: its own words, and its own hint."""
    verdict: Verdict = "unreachable" if isinstance(error, TemporaryError) else "wrong"
    return Diagnosis(check, verdict, error.message, error.hint or "correct the setting it names")


def exit_code(diagnoses: Iterable[Diagnosis]) -> int:
    """By the table of exit codes: 4 if something is wrong, else 3 if something is unreachable."""
    verdicts = {one.verdict for one in diagnoses}
    if "wrong" in verdicts:
        return 4
    return 3 if "unreachable" in verdicts else 0
