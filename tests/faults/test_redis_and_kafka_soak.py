"""Less than a minute of the soak, with queues of Redis and Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.test_soak import check_short_soak
from tests.soak.queues import QUEUES


@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", sorted(set(QUEUES) - {"rabbitmq"}))
def test_a_short_soak_loses_doubles_and_changes_nothing(tmp_path: Path, source: str) -> None:
    check_short_soak(tmp_path, source)
