"""A module with nothing but an async processor."""

from __future__ import annotations

from typing import Any

from fuploader_dagster import Item, processor
from tests import functions_for_tests


@processor
async def as_the_contract_says(item: Item) -> Any:
    """What the table of `ProcessorContract` says."""
    return await functions_for_tests.as_the_contract_says_async(item)
