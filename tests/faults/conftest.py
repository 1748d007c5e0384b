"""Fixtures of the tests that kill processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crashes import Lives


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    with Lives() as running:
        yield running
