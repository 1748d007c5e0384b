"""The API of Alibaba OSS through oss2.

What must always hold:

- oss2 retries nothing by itself; one wrapper retries for all backends.
- oss2's own comparison of CRC-64s is off: it skips resumed uploads, and ours covers all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import oss2
import requests
from oss2 import credentials
from urllib3.exceptions import HTTPError

from fuploader_dagster.contracts.object_store import UnfinishedUpload
from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.resources.object_stores import answers, service
from fuploader_dagster.resources.object_stores.archive_bytes import Part, View
from fuploader_dagster.resources.object_stores.crc64_service import Crc64Service
from fuploader_dagster.resources.object_stores.http_session import StoreSession
from fuploader_dagster.settings.secret import shown_cause

if TYPE_CHECKING:
    from fuploader_dagster.resources.object_stores.oss import OSSSettings

# oss2 logs each refusal, which we raise anyway, and at DEBUG it logs what it signs.
logging.getLogger("oss2").setLevel(logging.CRITICAL)


class OssService(Crc64Service):
    """The OSS API as `CloudObjectStore` needs it. `oss2.Bucket` is thread-safe."""

    without_answer = (oss2.exceptions.RequestError, requests.RequestException, HTTPError)

    def __init__(self, settings: OSSSettings) -> None:
        super().__init__(settings, settings.shown("endpoint"), "oss")
        self._bucket = _bucket(settings)
        self._new = settings.options_of_new_objects(
            "x-oss-storage-class",
            "x-oss-server-side-encryption",
            "x-oss-server-side-encryption-key-id",
            "x-oss-tagging",
        )

    def _head(self, key: str) -> Mapping[str, Any]:
        headers: Mapping[str, Any] = self._bucket.head_object(key).headers
        return headers

    def presigned(self, key: str, seconds: int) -> str | None:
        with self._asking("signing an address of", key):
            return str(self._bucket.sign_url("GET", key, seconds, slash_safe=True))

    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None:
        headers = self._new_object(metadata) | self._new | {"Content-MD5": service.base64_text(md5)}
        with self._asking("storing", key):
            # oss2 would send an empty file in chunks.
            self._bucket.put_object(key, body if len(body) else b"", headers=headers)

    def begin(self, key: str, metadata: Mapping[str, str]) -> str:
        headers = self._new_object(metadata) | self._new
        with self._asking("beginning an upload of", key):
            answer = self._bucket.init_multipart_upload(key, headers=headers)
            self._encrypted = self._is_encrypted(answer.headers)
            return str(answer.upload_id)

    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> service.ConfirmedPart:
        headers = {"Content-MD5": service.base64_text(md5)}
        with self._asking(f"storing part {part.number} of", key):
            answer = self._bucket.upload_part(key, upload_id, part.number, body, headers=headers)
            return self._confirmed(part, answer.etag or "", answer.headers)

    def _parts(self, key: str, upload_id: str, after: str) -> service.PartsPage:
        answer = self._bucket.list_parts(key, upload_id, marker=after)
        found = [
            service.ConfirmedPart.listed(part.part_number, part.size, part.etag)
            for part in answer.parts
        ]
        return found, answer.next_marker if answer.is_truncated else None

    def complete(self, key: str, upload_id: str, parts: Sequence[service.ConfirmedPart]) -> None:
        listed = [oss2.models.PartInfo(part.number, part.tag) for part in parts]
        with self._asking("completing", key, service.COMPLETING_SECONDS):
            self._bucket.complete_multipart_upload(
                key, upload_id, listed, headers=self._create_only
            )

    def abort(self, key: str, upload_id: str) -> None:
        with self._asking("aborting an upload of", key):
            self._bucket.abort_multipart_upload(key, upload_id)

    def _uploads(self, prefix: str, key: str, upload_id: str) -> service.UploadsPage:
        answer = self._bucket.list_multipart_uploads(
            prefix=prefix, key_marker=key, upload_id_marker=upload_id
        )
        found = [
            UnfinishedUpload(
                each.key,
                each.upload_id,
                datetime.fromtimestamp(each.initiation_date, timezone.utc),
            )
            for each in answer.upload_list
        ]
        if not answer.is_truncated:
            return found, None
        return found, (answer.next_key_marker, answer.next_upload_id_marker)

    def _get(self, key: str, first: int, last: int) -> tuple[int, Mapping[str, str], Any]:
        # Without this header OSS answers a range that it cannot satisfy with the whole object.
        headers = {"x-oss-range-behavior": "standard"}
        answer = self._bucket.get_object(key, byte_range=(first, last), headers=headers).resp
        return answer.status, answer.headers, answer.response.raw

    def _objects(self, prefix: str, after: str) -> tuple[list[tuple[str, int]], str | None]:
        answer = self._bucket.list_objects_v2(
            prefix=prefix, continuation_token=after, max_keys=1000
        )
        found = [(each.key, each.size) for each in answer.object_list]
        return found, answer.next_continuation_token if answer.is_truncated else None

    def delete(self, key: str, version: str = "") -> None:
        with self._asking("removing", key):
            self._bucket.delete_object(key, params={"versionId": version} if version else None)

    def date(self) -> str | None:
        with self._asking("asking the time of", ""):
            date: str | None = self._bucket.list_objects_v2(max_keys=1).headers.get("Date")
            return date

    def _meaning(self, error: Exception, tried: str) -> answers.Answer | Exception | None:
        if isinstance(error, oss2.exceptions.ServerError):
            return _answer(error)
        if isinstance(error, oss2.exceptions.ClientError):
            return StoreRefused(
                f"{tried}: {answers.quoted(str(error.body))}", hint="check the store's settings"
            )
        return None


def _answer(error: oss2.exceptions.ServerError) -> answers.Answer:
    # A HEAD has no body, and OSS does not always put the error into a header.
    code = error.code or ("NoSuchKey" if error.status == 404 else "")
    headers = error.headers
    return answers.Answer(
        error.status, code, error.message, headers.get("Retry-After"), headers.get("Location")
    )


def _bucket(settings: OSSSettings) -> Any:
    session = oss2.Session()
    session.session = StoreSession(settings.verify, settings.concurrency + 2)
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
        raise settings.impossible(str(error.body)) from shown_cause(error)


def _credentials(settings: OSSSettings) -> credentials.CredentialsProvider:
    if settings.access_key_id is not None and settings.access_key_secret is not None:
        return credentials.StaticCredentialsProvider(
            settings.access_key_id, settings.access_key_secret, settings.security_token or ""
        )
    if settings.instance_role_url is not None:
        return credentials.EcsRamRoleCredentialsProvider(settings.instance_role_url)
    return credentials.EnvironmentVariableCredentialsProvider()
