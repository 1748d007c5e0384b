"""Service: what a cloud's API must offer so that the verified put can stand on it.

A backend implements this and nothing else: each method is one request, or one listing read to
its end. Looking, comparing, cutting into parts, going on and retrying are done above it, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fuploader_dagster.contracts.object_store import UnfinishedUpload
from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.resources.object_stores.answers import Refusal
from fuploader_dagster.resources.object_stores.archive_bytes import Algorithm, Part, View


@dataclass(frozen=True)
class Stated:
    """What a service says about an object."""

    size_bytes: int
    metadata: Mapping[str, str]
    algorithm: Algorithm | None
    """How the service's own digest is made; None: it states none that can be computed here."""
    digest: str = ""
    version: str = ""
    """Which one it is, in a bucket with versions."""


@dataclass(frozen=True)
class ConfirmedPart:
    """A part that the service holds. `tag` is what completing asks for, empty if it gave none.

    `md5` is empty where the service does not state it (some encryptions). In a listing it is the
    tag, whatever that is made of.
    """

    number: int
    size_bytes: int
    md5: str
    tag: str


class Service(ABC):
    """One bucket in the service's own words: each method is one request (or one listing).

    Keys are full keys. Nothing is retried here. Errors as in `storage`, and for create-only
    requests `AlreadyThere`, for those about an upload `UploadGone`.
    """

    max_parts = 10_000
    sent_whole: Algorithm
    """The digest that this service states for what came in one request."""
    sent_in_parts: Algorithm
    """The same for what came in parts."""

    @abstractmethod
    def address(self, key: str) -> str: ...
    @abstractmethod
    def head(self, key: str) -> Stated | None:
        """One HEAD. `Refusal` without a code where the service refuses it."""

    def stat(self, key: str) -> Stated | None:
        """`head`, and the reason of a refusal.

        An answer to HEAD has no body: a wrong secret, an expired token and a wrong region look
        alike. A GET of one byte is refused with the reason.
        """
        try:
            return self.head(key)
        except Refusal as error:
            refusal = error
        if not refusal.answer.code:
            self.read(key, 0, 1)
        raise refusal

    def listed_size(self, key: str) -> int:
        """The size of an object whose HEAD does not state it."""
        for found, size in self.list(key):  # in the order of keys: it is the first one
            if found == key:
                return size
            break
        raise StoreRefused(
            f"{self.address(key)}: the service states the object's size neither to HEAD nor in its "
            "listing",
            hint="nothing can be verified there; look for a proxy between that drops headers",
        )

    @abstractmethod
    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None: ...
    @abstractmethod
    def begin(self, key: str, metadata: Mapping[str, str]) -> str: ...
    @abstractmethod
    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> ConfirmedPart:
        """The md5 in the result is what the service answered, not what was sent."""

    @abstractmethod
    def parts(self, key: str, upload_id: str) -> list[ConfirmedPart]: ...
    @abstractmethod
    def complete(self, key: str, upload_id: str, parts: Sequence[ConfirmedPart]) -> None: ...
    @abstractmethod
    def abort(self, key: str, upload_id: str) -> None: ...
    @abstractmethod
    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]: ...
    @abstractmethod
    def read(self, key: str, offset: int, length: int) -> bytes | None: ...
    @abstractmethod
    def list(self, prefix: str) -> Iterator[tuple[str, int]]: ...
    @abstractmethod
    def delete(self, key: str, version: str = "") -> None:
        """Without a version, a bucket with versions keeps them all behind a mark of deletion."""

    @abstractmethod
    def date(self) -> str | None:
        """The `Date` header of an answer to some small request."""
