"""The API of Alibaba OSS through oss2.

What must always hold:

- oss2 retries nothing by itself; one wrapper retries for all backends.
- The digest that counts is `x-oss-hash-crc64ecma`, which OSS computes from what it holds. oss2's
  own comparison is off: it skips resumed uploads, and ours covers all.
- Create-only is `x-oss-forbid-overwrite`. OSS ignores it in buckets with versioning; there the
  look before and after is all there is, and an older version is never lost.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import ParseError

import oss2
import requests
from oss2 import credentials
from urllib3.exceptions import HTTPError

from fuploader_dagster.errors import ConfigError, StoreRefused
from fuploader_dagster.resources.object_stores.answers import (
    Answer,
    Missing,
    PastTheEnd,
    error_for,
    unreachable,
    untrusted,
)
from fuploader_dagster.resources.object_stores.archive_bytes import Algorithm, Part, View
from fuploader_dagster.resources.object_stores.service import ConfirmedPart, Service, Stated
from fuploader_dagster.storage import UnfinishedUpload

if TYPE_CHECKING:
    from fuploader_dagster.resources.object_stores.oss import OSSSettings

META = "x-oss-meta-"
CREATE_ONLY = {"x-oss-forbid-overwrite": "true"}

# oss2 logs each refusal that is raised here anyway, and at DEBUG it logs what it signs.
logging.getLogger("oss2").setLevel(logging.CRITICAL)


class OssService(Service):
    """The OSS API as `CloudObjectStore` needs it. `oss2.Bucket` is thread-safe."""

    sent_whole: Algorithm = "crc64ecma"
    sent_in_parts: Algorithm = "crc64ecma"

    def __init__(self, settings: OSSSettings) -> None:
        self._name = settings.bucket
        self._where = settings.endpoint
        self._bucket = _bucket(settings)
        self._new = _options_of_new_objects(settings)
        self._encrypted = settings.encryption != "default"

    def address(self, key: str) -> str:
        return f"oss://{self._name}/{key}"

    def stat(self, key: str) -> Stated | None:
        try:
            with self._asking("looking at", key):
                headers = self._bucket.head_object(key).headers
        except Missing:
            return None
        metadata = {
            name.lower()[len(META) :]: value
            for name, value in headers.items()
            if name.lower().startswith(META)
        }
        crc = headers.get("x-oss-hash-crc64ecma", "")
        return Stated(int(headers["Content-Length"]), metadata, "crc64ecma" if crc else None, crc)

    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None:
        headers = _meta(metadata) | CREATE_ONLY | self._new | {"Content-MD5": _base64(md5)}
        with self._asking("storing", key):
            # An empty file would be sent in chunks.
            self._bucket.put_object(key, body if len(body) else b"", headers=headers)

    def begin(self, key: str, metadata: Mapping[str, str]) -> str:
        headers = _meta(metadata) | CREATE_ONLY | self._new
        with self._asking("beginning an upload of", key):
            return str(self._bucket.init_multipart_upload(key, headers=headers).upload_id)

    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> ConfirmedPart:
        headers = {"Content-MD5": _base64(md5)}
        with self._asking(f"storing part {part.number} of", key):
            answer = self._bucket.upload_part(key, upload_id, part.number, body, headers=headers)
        stated = "" if self._encrypted else answer.etag.lower()
        return ConfirmedPart(part.number, part.size_bytes, stated, answer.etag)

    def parts(self, key: str, upload_id: str) -> list[ConfirmedPart]:
        found: list[ConfirmedPart] = []
        marker, more = "", True
        while more:
            with self._asking("listing the parts of", key):
                page = self._bucket.list_parts(key, upload_id, marker=marker)
            marker, more = page.next_marker, page.is_truncated
            found += [
                ConfirmedPart(part.part_number, part.size, part.etag.lower(), part.etag)
                for part in page.parts
            ]
        return found

    def complete(self, key: str, upload_id: str, parts: Sequence[ConfirmedPart]) -> None:
        listed = [oss2.models.PartInfo(part.number, part.tag) for part in parts]
        with self._asking("completing", key):
            self._bucket.complete_multipart_upload(key, upload_id, listed, headers=CREATE_ONLY)

    def abort(self, key: str, upload_id: str) -> None:
        with self._asking("aborting an upload of", key):
            self._bucket.abort_multipart_upload(key, upload_id)

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        key_marker, id_marker, more = "", "", True
        while more:
            with self._asking("listing unfinished uploads of", prefix):
                page = self._bucket.list_multipart_uploads(
                    prefix=prefix, key_marker=key_marker, upload_id_marker=id_marker
                )
            key_marker, id_marker = page.next_key_marker, page.next_upload_id_marker
            more = page.is_truncated
            for each in page.upload_list:
                begun = datetime.fromtimestamp(each.initiation_date, timezone.utc)
                yield UnfinishedUpload(each.key, each.upload_id, begun)

    def read(self, key: str, offset: int, length: int) -> bytes | None:
        # Without this header OSS answers a range that it cannot satisfy with the whole object.
        headers = {"x-oss-range-behavior": "standard"}
        try:
            with self._asking("reading", key):
                answer = self._bucket.get_object(
                    key, byte_range=(offset, offset + length - 1), headers=headers
                )
                data: bytes = answer.read()
                if len(data) != answer.content_length:
                    raise HTTPError(f"{len(data)} of {answer.content_length} bytes came")
                return data
        except Missing:
            return None
        except PastTheEnd:
            return b""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        token, more = "", True
        while more:
            with self._asking("listing", prefix):
                page = self._bucket.list_objects_v2(
                    prefix=prefix, continuation_token=token, max_keys=1000
                )
            token, more = page.next_continuation_token, page.is_truncated
            for each in page.object_list:
                yield each.key, each.size

    def delete(self, key: str) -> None:
        with self._asking("removing", key):
            self._bucket.delete_object(key)

    def date(self) -> str | None:
        with self._asking("asking the time of", ""):
            answer = self._bucket.list_objects_v2(max_keys=1)
        date: str | None = answer.headers.get("Date")
        return date

    @contextmanager
    def _asking(self, doing: str, key: str) -> Iterator[None]:
        """One request: turn what oss2 raises into what it means."""
        tried = f"{doing} {self.address(key)}"
        try:
            yield
        except oss2.exceptions.ServerError as error:
            raise _meaning(error, tried) from error
        except oss2.exceptions.ClientError as error:
            raise StoreRefused(
                f"{tried}: {error.body}", hint="check the store's settings"
            ) from error
        except (
            oss2.exceptions.RequestError,
            ParseError,
            requests.RequestException,
            HTTPError,
        ) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise untrusted(tried, self._where, str(error)) from error
            raise unreachable(tried, self._where, str(error)) from error


def _meaning(error: oss2.exceptions.ServerError, tried: str) -> Exception:
    # A HEAD has no body, and OSS does not always put the error into a header.
    if error.code == "NoSuchKey" or (error.status == 404 and not error.code):
        return Missing(tried)
    if error.status == 416 or error.code == "InvalidRange":
        return PastTheEnd(tried)
    retry_after = error.headers.get("Retry-After")
    answer = Answer(error.status, error.code, error.message, retry_after)
    return error_for(tried, answer, time.time())


def _bucket(settings: OSSSettings) -> Any:
    session = oss2.Session(pool_size=settings.concurrency + 2)
    session.session.verify = settings.verify
    try:
        provider = _credentials(settings)
        v4 = settings.region is not None
        return oss2.Bucket(
            oss2.ProviderAuthV4(provider) if v4 else oss2.ProviderAuth(provider),
            settings.endpoint,
            settings.bucket,
            is_cname=settings.addressing_style == "cname",
            session=session,
            connect_timeout=(settings.connect_timeout_seconds, settings.read_timeout_seconds),
            enable_crc=False,
            proxies=settings.proxies,
            region=settings.region,
            is_path_style=settings.addressing_style == "path",
        )
    except oss2.exceptions.ClientError as error:
        raise ConfigError(
            f"{settings.describe()}: {error.body}", hint="check the store's settings"
        ) from error


def _credentials(settings: OSSSettings) -> credentials.CredentialsProvider:
    if settings.access_key_id is not None and settings.access_key_secret is not None:
        return credentials.StaticCredentialsProvider(
            settings.access_key_id, settings.access_key_secret, settings.security_token or ""
        )
    if settings.instance_role_url is not None:
        return credentials.EcsRamRoleCredentialsProvider(settings.instance_role_url)
    return credentials.EnvironmentVariableCredentialsProvider()


def _options_of_new_objects(settings: OSSSettings) -> dict[str, str]:
    encryption = None if settings.encryption == "default" else settings.encryption
    options = {
        "x-oss-storage-class": settings.storage_class,
        "x-oss-server-side-encryption": encryption,
        "x-oss-server-side-encryption-key-id": settings.kms_key_id,
        "x-oss-tagging": settings.tagging,
    }
    return {name: value for name, value in options.items() if value is not None}


def _meta(metadata: Mapping[str, str]) -> dict[str, str]:
    return {META + name: value for name, value in metadata.items()}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
