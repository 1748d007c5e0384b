"""What all clouds share: settings, and the ObjectStore contract on top of a `Service`."""

from __future__ import annotations

import builtins
import hashlib
import logging
from abc import abstractmethod
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import quote, urlencode

from pydantic import Field

from fuploader_dagster.contracts.object_store import (
    ArchiveFile,
    ObjectInfo,
    ObjectStore,
    Progress,
    StoredObject,
    UnfinishedUpload,
)
from fuploader_dagster.errors import ConfigError, StoreRefused
from fuploader_dagster.resources.object_stores.answers import UploadGone, quoted
from fuploader_dagster.resources.object_stores.keys import full_key, full_prefix, own_key
from fuploader_dagster.resources.object_stores.service import Service
from fuploader_dagster.resources.object_stores.settings import ObjectStoreSettings
from fuploader_dagster.resources.object_stores.verified_put import SHA256, SentParts, VerifiedPut

log = logging.getLogger(__name__)

MIB = 1 << 20
ENCRYPTION = "How the service encrypts new objects. `default`: as the bucket is configured."
PART_SIZE = "Smallest size of a part. Parts are larger where an archive would need too many."
SDK_NAMES = ("StorageClass", "ServerSideEncryption", "SSEKMSKeyId", "Tagging")
"""The names that boto3 and the COS SDK have for `options_of_new_objects`."""


class CloudSettings(ObjectStoreSettings):
    """The settings that all clouds have in common."""

    bucket: str
    """Name of the bucket."""
    prefix: str = ""
    """Prefix of all keys."""
    verify_tls: bool = True
    """Check the server's certificate. Off: accept any."""
    ca_bundle: str | None = None
    """PEM file of the certificates to trust instead of the system's."""
    proxy_url: str | None = Field(default=None, repr=False)
    """HTTP proxy, with its password if it has one."""
    storage_class: str | None = None
    """Storage class of new objects, such as STANDARD_IA."""
    encryption: str = Field(default="default", description=ENCRYPTION)
    kms_key_id: str | None = None
    """Key of the service's key management. By default, its default key."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of every new object."""
    part_size_bytes: int = Field(default=16 * MIB, ge=5 * MIB, le=2048 * MIB, description=PART_SIZE)
    concurrency: int = Field(default=4, ge=1, le=64)
    """Number of parts that are sent at once."""
    connect_timeout_seconds: float = Field(default=10, gt=0)
    """Longest time to wait for a connection."""
    read_timeout_seconds: float = Field(default=60, gt=0)
    """Longest pause between two pieces of a response."""

    @abstractmethod
    def service(self) -> Service:
        """The cloud's API, from resolved settings. Errors as in `connect`."""

    def connect(self) -> ObjectStore:
        return CloudObjectStore(
            self.service(),
            prefix=self.prefix,
            part_size_bytes=self.part_size_bytes,
            concurrency=self.concurrency,
        )

    def impossible(self, reason: str) -> ConfigError:
        """The error for settings that the client library does not accept."""
        return ConfigError(
            f"{self.describe()}: {quoted(reason)}", hint="check the store's settings"
        )

    @property
    def verify(self) -> bool | str:
        """The certificates to trust, as `requests` takes them."""
        return (self.ca_bundle or True) if self.verify_tls else False

    @property
    def proxies(self) -> dict[str, str] | None:
        """The proxies, as `requests` takes them."""
        return {"http": self.proxy_url, "https": self.proxy_url} if self.proxy_url else None

    def options_of_new_objects(self, *names: str) -> dict[str, str]:
        """Storage class, encryption, KMS key and tags, under the client library's names for them.

        What is not set is left out.
        """
        encryption = None if self.encryption == "default" else self.encryption
        tagging = urlencode(self.tags, quote_via=quote) or None
        values = (self.storage_class, encryption, self.kms_key_id, tagging)
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}


class CloudObjectStore(ObjectStore):
    """The contract, on top of any `Service`."""

    def __init__(
        self, service: Service, *, prefix: str, part_size_bytes: int, concurrency: int
    ) -> None:
        self._service = service
        self._prefix = prefix
        self._part_size_bytes = part_size_bytes
        self._concurrency = concurrency
        self._sent = SentParts()

    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        put = self._put(key, archive, progress)
        return put.run(self._part_size_bytes, self._concurrency)

    def _put(self, key: str, archive: ArchiveFile, progress: Progress | None) -> VerifiedPut:
        full = full_key(self._prefix, key)
        return VerifiedPut(self._service, key, full, archive, progress=progress, sent=self._sent)

    def head(self, key: str) -> ObjectInfo | None:
        there = self._service.stat(full_key(self._prefix, key))
        return (
            None if there is None else ObjectInfo(key, there.size_bytes, there.metadata.get(SHA256))
        )

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length <= 0:
            return b""
        data = self._service.read(full_key(self._prefix, key), offset, length)
        if data is None:
            raise StoreRefused(f"there is no object {self.address(key)}")
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for full, size in self._service.list(full_prefix(self._prefix, prefix)):
            yield ObjectInfo(own_key(self._prefix, full), size, None)

    def delete(self, key: str) -> None:
        self._service.delete(full_key(self._prefix, key))

    def erase(self, key: str) -> None:
        full = full_key(self._prefix, key)
        there = self._service.stat(full)
        if there is not None:
            self._service.delete(full, there.version)

    def check(self) -> None:
        """Begin an upload, send a part, abort it: needs the rights of a put and stores nothing."""
        content = b"fuploader-check"
        with NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            sha256 = hashlib.sha256(content).hexdigest()
            probe = ArchiveFile(Path(file.name), len(content), sha256)
            self._put("fuploader-check", probe, None).rehearse()

    def address(self, key: str) -> str:
        return self._service.address(full_key(self._prefix, key))

    def presigned(self, key: str, seconds: int) -> str | None:
        return self._service.presigned(full_key(self._prefix, key), seconds)

    def clock(self) -> datetime | None:
        date = self._service.date()
        try:
            return parsedate_to_datetime(date) if date else None
        except (ValueError, TypeError):
            return None  # not a date: the service has no clock

    def unfinished(self, prefix: str = "") -> builtins.list[UnfinishedUpload]:
        return [
            UnfinishedUpload(own_key(self._prefix, each.key), each.upload_id, each.begun_at)
            for each in self._service.unfinished(full_prefix(self._prefix, prefix))
        ]

    def abort(self, upload: UnfinishedUpload) -> None:
        try:
            self._service.abort(full_key(self._prefix, upload.key), upload.upload_id)
        except UploadGone:
            log.debug("the unfinished upload of %s is gone already", upload.key)
