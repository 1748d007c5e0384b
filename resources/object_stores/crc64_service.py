"""What the APIs of COS and OSS have in common: the same headers, each with its own prefix.

What must always hold:

- The digest that counts is `x-...-hash-crc64ecma`, which the service computes from what it holds.
- Create-only is `x-...-forbid-overwrite`. Both ignore it in buckets with versioning; there the
  look before and after is all there is, and an older version is never lost.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from fuploader_dagster.resources.object_stores.answers import Missing
from fuploader_dagster.resources.object_stores.archive_bytes import Algorithm, Part
from fuploader_dagster.resources.object_stores.cloud import CloudSettings
from fuploader_dagster.resources.object_stores.service import ConfirmedPart, Service, Stated


class Crc64Service(Service):
    """A service that states the CRC-64 of every object."""

    sent_whole: Algorithm = "crc64ecma"
    sent_in_parts: Algorithm = "crc64ecma"

    def __init__(self, settings: CloudSettings, where: str, cloud: str) -> None:
        super().__init__(f"{cloud}://{settings.bucket}", where, settings.read_timeout_seconds)
        self._prefix = prefix = f"x-{cloud}-"
        self._create_only = {f"{prefix}forbid-overwrite": "true"}
        self._encrypted = settings.encryption != "default"
        """Then an ETag is not an md5, whether we asked for encryption or the bucket does it."""

    @abstractmethod
    def _head(self, key: str) -> Mapping[str, Any]:
        """The headers of the answer to HEAD."""

    def head(self, key: str) -> Stated | None:
        try:
            with self._asking("looking at", key):
                headers = {name.lower(): value for name, value in self._head(key).items()}
                stated = headers.get("content-length")
                size = None if stated is None else int(stated)
        except Missing:
            return None
        meta = f"{self._prefix}meta-"
        metadata = {
            name[len(meta) :]: value for name, value in headers.items() if name.startswith(meta)
        }
        crc = headers.get(f"{self._prefix}hash-crc64ecma", "")
        algorithm: Algorithm | None = "crc64ecma" if crc else None
        size = self.listed_size(key) if size is None else size
        return Stated(size, metadata, algorithm, crc, headers.get(f"{self._prefix}version-id", ""))

    def _new_object(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Headers of a request that creates an object, and must not replace one."""
        named = {f"{self._prefix}meta-{name}": value for name, value in metadata.items()}
        return named | self._create_only

    def _is_encrypted(self, headers: Mapping[str, Any]) -> bool:
        return self._encrypted or f"{self._prefix}server-side-encryption" in headers

    def _confirmed(self, part: Part, tag: str, headers: Mapping[str, Any]) -> ConfirmedPart:
        md5 = "" if self._is_encrypted(headers) else tag.strip('"').lower()
        return ConfirmedPart(part.number, part.size_bytes, md5, tag)
