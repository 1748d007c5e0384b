"""What a fuzz target is: a reader, valid inputs for it, and how an input is put to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tests.fuzz.mutation import Edit, mutated


class Target(ABC):
    """One reader. `put` returns whether the input was accepted; it may raise errors of ours."""

    name: ClassVar[str]
    share: ClassVar[int]
    """Of each hundred inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    @abstractmethod
    def valid(self) -> Sequence[bytes]:
        """Inputs that are accepted as they are."""

    @abstractmethod
    def put(self, data: bytes) -> bool: ...

    def made(self, base: int, changes: Sequence[Edit], repaired: bool) -> bytes:
        """The input of these draws."""
        data = mutated(self.valid[base % len(self.valid)], changes, self.valid)
        return self.repaired(data, changes) if repaired else data

    def repaired(self, data: bytes, changes: Sequence[Edit]) -> bytes:
        """With its checksums put right, where the format has some."""
        return data
