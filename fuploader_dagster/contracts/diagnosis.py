"""Diagnosis: what a check of one prerequisite of a pipeline found.

A backend's `examine` checks the backend, `health/doctor.py` the rest. A check never raises for what
it is there to find, leaves nothing changed, and takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fuploader_dagster.errors import FuploaderError, TemporaryError

Verdict = Literal["good", "warning", "unreachable", "wrong"]
"""`warning`: it works, but a person should know. `unreachable`: it may pass by itself. `wrong`: a
person has to act first."""


@dataclass(frozen=True)
class Diagnosis:
    """One line of `fuploader doctor`."""

    check: str
    """What was checked, in a word or two."""
    verdict: Verdict
    found: str
    hint: str = ""
    """What to do; empty only if the verdict is good."""


def trouble(check: str, error: FuploaderError) -> Diagnosis:
    """The diagnosis that an error of ours stands for, in its words and with its hint."""
    verdict: Verdict = "unreachable" if isinstance(error, TemporaryError) else "wrong"
    return Diagnosis(check, verdict, error.message, error.hint or "correct the setting it names")


def exit_code(diagnoses: Iterable[Diagnosis]) -> int:
    """4 if something is wrong, else 3 if something is unreachable, else 0."""
    verdicts = {one.verdict for one in diagnoses}
    if "wrong" in verdicts:
        return 4
    return 3 if "unreachable" in verdicts else 0
