"""What every processor does, by one whose results are files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from fuploader_dagster import FileResult
from fuploader_dagster.contracts.processor import (
    Answer,
    Failure,
    Item,
    Partial,
    Processor,
    ProcessorSettings,
    Result,
)
from fuploader_dagster.errors import BadItem, RetryItem
from fuploader_dagster.testing import ProcessorContract

GONE = Failure("x", "gone", {"status": 410})


class Files(Processor):
    """Does what the table of the contract says."""

    uses_folder: ClassVar[bool] = True

    async def process(self, items: Sequence[Item]) -> Sequence[Answer]:
        return [await self._one(item) for item in items]

    async def _one(self, item: Item) -> Answer:
        word, _, rest = item.content.partition(b" ")
        if word == b"retry":
            raise RetryItem("not now")
        if word == b"slow":
            await asyncio.sleep(float(rest))
        if word.startswith(b"file"):
            return [_file(item, item.content)]
        answers: dict[bytes, Callable[[], Answer]] = {
            b"bad": lambda: BadItem("it is bad"),
            b"failing": lambda: Partial([], [GONE]),
            b"header": lambda: [Result(item.headers[rest.decode()].encode())],
            b"key": lambda: [Result(item.key.encode())],
            b"many": lambda: [Result(b"%d" % number) for number in range(int(rest))],
            b"none": list,
            b"partial": lambda: Partial([_file(item, b"whole")], [GONE], b"failing"),
            b"slow": lambda: [Result(b"slow")],
        }
        return answers.get(word, lambda: [Result(item.content)])()

    async def close(self) -> None:
        """Nothing is open."""


def _file(item: Item, content: bytes) -> FileResult:
    assert item.folder is not None
    path = item.folder / "made"
    path.write_bytes(content)
    return FileResult("made", path, len(content), hashlib.sha256(content).digest())


class FilesSettings(ProcessorSettings):
    """Settings of `Files`."""

    def processor(self) -> Processor:
        return Files()

    def describe(self) -> str:
        return "files"


class TestFiles(ProcessorContract):
    @pytest.fixture
    def settings(self) -> ProcessorSettings:
        return FilesSettings()


class TestFilesInBatches(ProcessorContract):
    @pytest.fixture
    def settings(self) -> ProcessorSettings:
        return FilesSettings(batch=5)
