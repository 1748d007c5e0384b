"""Contract tests for your own backends: subclass one in a test module and give it its fixture.

    from fuploader_dagster.testing import MessageSourceContract

    class TestMyQueue(MessageSourceContract):
        @pytest.fixture
        def settings(self, tmp_path):
            return MyQueue(...)  # an empty queue

Only this part of the package needs pytest. The same classes test the backends of this package.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(  # a failed assert shows its values
    "fuploader_dagster.testing.limit_contract",
    "fuploader_dagster.testing.message_source_contract",
    "fuploader_dagster.testing.notifier_contract",
    "fuploader_dagster.testing.object_store_contract",
    "fuploader_dagster.testing.processor_contract",
    "fuploader_dagster.testing.sink_contract",
    "fuploader_dagster.testing.source_steps",
    "fuploader_dagster.testing.state_store_contract",
)

from fuploader_dagster.testing.message_source_contract import MessageSourceContract  # noqa: E402
from fuploader_dagster.testing.notifier_contract import NotifierContract  # noqa: E402
from fuploader_dagster.testing.object_store_contract import (  # noqa: E402
    ObjectStoreContract,
    OpenStore,
    PartsContract,
)
from fuploader_dagster.testing.processor_contract import ProcessorContract  # noqa: E402
from fuploader_dagster.testing.sink_contract import SinkContract  # noqa: E402
from fuploader_dagster.testing.state_store_contract import StateStoreContract  # noqa: E402

__all__ = [
    "MessageSourceContract",
    "NotifierContract",
    "ObjectStoreContract",
    "OpenStore",
    "PartsContract",
    "ProcessorContract",
    "SinkContract",
    "StateStoreContract",
]
