"""Service: what a cloud's API must offer so that the verified put can be built on it.

A backend implements this and nothing else: each method is one request, or one listing read to
its end. Looking, comparing, cutting into parts, resuming and retrying are done above it, once.
"""

from __future__ import annotations

import base64
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fuploader_dagster.contracts.object_store import UnfinishedUpload, note_request
from fuploader_dagster.errors import FuploaderError, StoreRefused
from fuploader_dagster.resources.object_stores import answers
from fuploader_dagster.resources.object_stores.archive_bytes import Algorithm, Part, View
from fuploader_dagster.resources.object_stores.connections import answer_within
from fuploader_dagster.resources.object_stores.ranges import exact_range, reading_seconds
from fuploader_dagster.settings.secret import shown_cause

USUAL_SECONDS = 60.0
"""Longest time for a page of a listing, or an error, beyond twice the read time-out."""
COMPLETING_SECONDS = 900.0
"""S3 says that joining the parts may take minutes, in which it sends white space."""

T = TypeVar("T")
Token = TypeVar("Token", bound=Hashable)


@dataclass(frozen=True)
class Stated:
    """What a service states about an object."""

    size_bytes: int
    metadata: Mapping[str, str]
    algorithm: Algorithm | None
    """The algorithm of the service's own digest; None: it states none that we can compute here."""
    digest: str = ""
    version: str = ""
    """The object's version, in a bucket with versions."""


@dataclass(frozen=True)
class ConfirmedPart:
    """A part that the service holds. `tag` is what completing needs, empty if it gave none.

    `md5` is empty where the service does not state it (some encryptions).
    """

    number: int
    size_bytes: int
    md5: str
    tag: str

    @classmethod
    def listed(cls, number: int | str, size_bytes: int | str, tag: str) -> ConfirmedPart:
        """A part in a listing. Its md5 is the tag, whatever that is made of."""
        return cls(int(number), int(size_bytes), tag.strip('"').lower(), tag)


PartsPage = tuple[Sequence[ConfirmedPart], str | None]
"""A page of an upload's parts, and where the next page begins; None at the end."""
UploadsPage = tuple[Sequence[UnfinishedUpload], tuple[str, str] | None]
"""The same of unfinished uploads: after which key and id the next page begins."""


class Service(ABC):
    """One bucket in the service's own terms: each method is one request (or one listing).

    Keys are full keys. Nothing is retried here. Errors are those of `contracts.object_store`, also
    `AlreadyThere` for create-only requests and `UploadGone` for requests about an upload.
    """

    max_parts = 10_000
    without_answer: tuple[type[Exception], ...]
    """What the client library raises when no answer came."""
    sent_whole: Algorithm
    """The digest that this service states for an object sent in one request."""
    sent_in_parts: Algorithm
    """The same for an object sent in parts."""

    def __init__(self, bucket: str, where: str, silence_seconds: float) -> None:
        self._root = bucket
        """The bucket's own address, such as s3://bucket."""
        self._where = where
        """The service's address, for error messages."""
        self._silence_seconds = silence_seconds

    def address(self, key: str) -> str:
        return f"{self._root}/{key}"

    @abstractmethod
    def presigned(self, key: str, seconds: int) -> str | None:
        """As in `ObjectStore`; asks nobody."""

    @abstractmethod
    def head(self, key: str) -> Stated | None:
        """One HEAD. `Refusal` without a code where the service refuses it."""

    @abstractmethod
    def _get(self, key: str, first: int, last: int) -> tuple[int, Mapping[str, str], Any]:
        """GET the bytes `first` to `last`: status, headers, and the body to read and close."""

    @abstractmethod
    def _meaning(self, error: Exception, tried: str) -> answers.Answer | Exception | None:
        """What an error of the client library is: the service's answer, or an error of ours.

        None if it says nothing more than that no answer came, or is not one of the library's.
        """

    @contextmanager
    def _asking(self, doing: str, key: str, body_seconds: float = USUAL_SECONDS) -> Iterator[None]:
        """Around one request and all reading of its answer.

        Whatever the service answers, however odd, and whatever the client library makes of it, the
        caller gets one of the exceptions of `answers`, or an error of ours that names the request
        and the address. The answer is limited in time. It is counted (`counted_requests`).
        """
        tried = f"{doing} {self.address(key)}"
        handled = sys.exc_info()[1]  # the caller is handling it: not an error of this request
        note_request()
        with answer_within(2 * self._silence_seconds, body_seconds) as due:
            try:
                yield
            except (FuploaderError, answers.Told):
                raise
            except Exception as error:
                if (own := _own_error(error, handled)) is not None:
                    raise own from error
                if due.late:
                    raise answers.late(tried, self._where) from shown_cause(error)
                raise self._explained(error, tried) from shown_cause(error)
            if due.late:  # the client library took the part that came for the whole
                raise answers.late(tried, self._where)

    def _explained(self, error: Exception, tried: str) -> Exception:
        meaning = self._meaning(error, tried)
        if isinstance(meaning, answers.Answer):
            return answers.error_for(tried, meaning, time.time())
        if meaning is None and isinstance(error, self.without_answer):
            return answers.unreachable(tried, self._where, str(error))
        return meaning or answers.makes_no_sense(tried, self._where, error)

    def _pages(
        self,
        doing: str,
        key: str,
        first: Token,
        ask: Callable[[Token], tuple[Iterable[T], Token | None]],
    ) -> Iterator[T]:
        """All pages of a listing, each asked for by one request. The listing ends.

        `ask` returns a page and where the next one begins, None at the end.
        """
        seen: set[Token] = set()
        place: Token | None = first
        while place is not None:
            if place in seen:
                tried = f"{doing} {self.address(key)}"
                raise answers.makes_no_sense(tried, self._where, "its pages go round in a circle")
            seen.add(place)
            with self._asking(doing, key):
                found, place = ask(place)
            yield from found

    def read(self, key: str, offset: int, length: int) -> bytes | None:
        """The bytes that the object has there: fewer at its end. None if there is no object."""
        try:
            with self._asking("reading", key, reading_seconds(length)):
                status, headers, body = self._get(key, offset, offset + length - 1)
                with closing(body):
                    return exact_range(
                        f"reading {self.address(key)}",
                        self._where,
                        (offset, length),
                        status,
                        {name.lower(): value for name, value in headers.items()},
                        body.read,
                    )
        except answers.Missing:
            return None
        except answers.PastTheEnd:
            return b""

    def stat(self, key: str) -> Stated | None:
        """`head`, and the reason if the service refuses.

        An answer to HEAD has no body: a wrong secret, an expired token and a wrong region look
        alike. The service's refusal of a GET of one byte says the reason.
        """
        try:
            return self.head(key)
        except answers.Refusal as error:
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
            f"{self.address(key)}: the service states the object's size neither in its answer to "
            "HEAD nor in its listing",
            hint="without it nothing can be verified; look for a proxy in between that drops "
            "headers",
        )

    @abstractmethod
    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None: ...
    @abstractmethod
    def begin(self, key: str, metadata: Mapping[str, str]) -> str: ...
    @abstractmethod
    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> ConfirmedPart:
        """The md5 in the result is what the service answered, not the one that was sent."""

    def parts(self, key: str, upload_id: str) -> list[ConfirmedPart]:
        """The parts of an upload that the service holds."""
        doing = "listing the parts of"
        return [*self._pages(doing, key, "", lambda after: self._parts(key, upload_id, after))]

    @abstractmethod
    def _parts(self, key: str, upload_id: str, after: str) -> PartsPage: ...

    @abstractmethod
    def complete(self, key: str, upload_id: str, parts: Sequence[ConfirmedPart]) -> None: ...
    @abstractmethod
    def abort(self, key: str, upload_id: str) -> None: ...
    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Uploads in parts that were begun and neither completed nor aborted."""
        doing = "listing unfinished uploads of"
        return self._pages(doing, prefix, ("", ""), lambda after: self._uploads(prefix, *after))

    @abstractmethod
    def _uploads(self, prefix: str, key: str, upload_id: str) -> UploadsPage: ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Keys and sizes of all objects below the prefix, in order of keys."""
        return self._pages("listing", prefix, "", lambda after: self._objects(prefix, after))

    @abstractmethod
    def _objects(self, prefix: str, after: str) -> tuple[Iterable[tuple[str, int]], str | None]:
        """A page of the objects below the prefix, and where the next page begins."""

    @abstractmethod
    def delete(self, key: str, version: str = "") -> None:
        """Without `version`, a bucket with versions keeps them all behind a delete marker."""

    @abstractmethod
    def date(self) -> str | None:
        """The `Date` header of an answer to some small request."""


def _own_error(error: BaseException | None, before: BaseException | None) -> FuploaderError | None:
    """The error of ours that a client library has wrapped: it reads our archive, asks our keys."""
    while error is not None and error is not before:
        if isinstance(error, FuploaderError):
            return error
        error = error.__cause__ or error.__context__
    return None


def base64_text(digest: bytes) -> str:
    """A binary digest as headers have it."""
    return base64.b64encode(digest).decode()
