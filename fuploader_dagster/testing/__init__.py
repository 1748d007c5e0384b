"""Contract tests for backends of your own: subclass one in a test module, give it its fixture.

    from fuploader_dagster.testing import MessageSourceContract

    class TestMyQueue(MessageSourceContract):
        @pytest.fixture
        def settings(self, tmp_path):
            return MyQueue(...)  # an empty queue

Needs pytest, which nothing else of this package does. The backends of this package are tested by
the same classes.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(  # a failed assert shows its values
    "fuploader_dagster.testing.message_source_contract",
    "fuploader_dagster.testing.object_store_contract",
    "fuploader_dagster.testing.state_store_contract",
)

from fuploader_dagster.testing.message_source_contract import MessageSourceContract  # noqa: E402
from fuploader_dagster.testing.object_store_contract import (  # noqa: E402
    ObjectStoreContract,
    OpenStore,
    PartsContract,
)
from fuploader_dagster.testing.state_store_contract import StateStoreContract  # noqa: E402

__all__ = [
    "MessageSourceContract",
    "ObjectStoreContract",
    "OpenStore",
    "PartsContract",
    "StateStoreContract",
]
