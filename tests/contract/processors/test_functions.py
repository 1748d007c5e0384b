"""What every processor does: functions in child processes, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from fuploader_dagster import Functions
from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.testing import ProcessorContract


class TestFunctions(ProcessorContract):
    @pytest.fixture(params=["functions_for_tests", "async_functions_for_tests"])
    def settings(self, request: pytest.FixtureRequest) -> ProcessorSettings:
        return Functions(module=f"tests.{request.param}", workers=2, concurrency=64)


class TestFunctionsInBatches(ProcessorContract):
    @pytest.fixture
    def settings(self) -> ProcessorSettings:
        return Functions(module="tests.functions_for_tests", workers=3, batch=7)


class TestFunctionsUnderUvloop(TestFunctionsInBatches):
    """As in `fuploader serve`: uvicorn runs them in an event loop that is not Python's."""

    @pytest.fixture(autouse=True)
    def event_loop_policy(self) -> Iterator[None]:
        before = asyncio.get_event_loop_policy()
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        try:
            yield
        finally:
            asyncio.set_event_loop_policy(before)
