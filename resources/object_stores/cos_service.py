"""The API of Tencent COS through cos-python-sdk-v5.

What must always hold:

- The SDK's own retries are off: one wrapper retries for all backends. Retry-After comes through a
  hook, because the SDK's errors keep no headers.
- The SDK does not compare the CRC-64; we do.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import unescape

import requests
from qcloud_cos import CosClientError, CosConfig, CosS3Client, CosServiceError
from urllib3.exceptions import HTTPError

from fuploader_dagster.contracts.object_store import UnfinishedUpload
from fuploader_dagster.resources.object_stores import service
from fuploader_dagster.resources.object_stores.answers import Answer
from fuploader_dagster.resources.object_stores.archive_bytes import Part, View
from fuploader_dagster.resources.object_stores.cloud import SDK_NAMES
from fuploader_dagster.resources.object_stores.cos_role import RoleCredentials
from fuploader_dagster.resources.object_stores.crc64_service import Crc64Service
from fuploader_dagster.resources.object_stores.http_session import StoreSession
from fuploader_dagster.settings.secret import shown_cause

if TYPE_CHECKING:
    from fuploader_dagster.resources.object_stores.cos import COSSettings

# The SDK logs each refusal, which we raise anyway, and at DEBUG it logs signing keys.
logging.getLogger("qcloud_cos").setLevel(logging.CRITICAL)


class CosService(Crc64Service):
    """The COS API as `CloudObjectStore` needs it. The client is thread-safe."""

    without_answer = (CosClientError, requests.RequestException, HTTPError)

    def __init__(self, settings: COSSettings) -> None:
        place = next((name for name in ("address", "endpoint") if getattr(settings, name)), None)
        where = settings.shown(place) if place else f"COS in {settings.region}"
        super().__init__(settings, where, "cos")
        self._bucket = settings.bucket
        self._said = threading.local()
        self._client = _client(settings, self._remember)
        self._new = settings.options_of_new_objects(*SDK_NAMES)

    def _head(self, key: str) -> Mapping[str, Any]:
        headers: Mapping[str, Any] = self._client.head_object(Bucket=self._bucket, Key=key)
        return headers

    def presigned(self, key: str, seconds: int) -> str | None:
        # A browser does not know the setting `address`, so the bucket's own host is signed.
        signer, public = copy.copy(self._client), copy.copy(self._client.get_conf())
        signer._conf, public._ip, public._port = public, None, None
        token = public._token
        with self._asking("signing an address of", key):
            return str(
                signer.get_presigned_url(
                    Bucket=self._bucket,
                    Key=key,
                    Method="GET",
                    Expired=seconds,
                    Params={"x-cos-security-token": token} if token else {},
                )
            )

    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None:
        with self._asking("storing", key):
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=body if len(body) else b"",  # the SDK would send an empty file in chunks
                ContentMD5=service.base64_text(md5),
                Metadata=self._new_object(metadata),
                **self._new,
            )

    def begin(self, key: str, metadata: Mapping[str, str]) -> str:
        with self._asking("beginning an upload of", key):
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=key, Metadata=self._new_object(metadata), **self._new
            )
            self._encrypted = self._is_encrypted(self._said.headers)
            return str(answer["UploadId"])

    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> service.ConfirmedPart:
        with self._asking(f"storing part {part.number} of", key):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=key,
                Body=body,
                PartNumber=part.number,
                UploadId=upload_id,
                ContentMD5=service.base64_text(md5),
            )
            headers = {name.lower(): value for name, value in answer.items()}
            return self._confirmed(part, headers.get("etag", ""), headers)

    def _parts(self, key: str, upload_id: str, after: str) -> service.PartsPage:
        answer = self._client.list_parts(
            Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumberMarker=after or "0"
        )
        found = [
            service.ConfirmedPart.listed(part["PartNumber"], part["Size"], part.get("ETag", ""))
            for part in answer.get("Part", ())
        ]
        return found, answer["NextPartNumberMarker"] if _truncated(answer) else None

    def complete(self, key: str, upload_id: str, parts: Sequence[service.ConfirmedPart]) -> None:
        listed = [{"PartNumber": str(part.number), "ETag": part.tag} for part in parts]
        with self._asking("completing", key, service.COMPLETING_SECONDS):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Part": listed},
                Metadata=self._create_only,
            )

    def abort(self, key: str, upload_id: str) -> None:
        with self._asking("aborting an upload of", key):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    def _uploads(self, prefix: str, key: str, upload_id: str) -> service.UploadsPage:
        answer = self._client.list_multipart_uploads(
            Bucket=self._bucket, Prefix=prefix, KeyMarker=key, UploadIdMarker=upload_id
        )
        found = [
            UnfinishedUpload(
                each["Key"],
                each["UploadId"],
                datetime.fromisoformat(each["Initiated"].replace("Z", "+00:00")),
            )
            for each in answer.get("Upload", ())
        ]
        if not _truncated(answer):
            return found, None
        return found, (answer["NextKeyMarker"] or "", answer["NextUploadIdMarker"] or "")

    def _get(self, key: str, first: int, last: int) -> tuple[int, Mapping[str, str], Any]:
        answer = self._client.get_object(
            Bucket=self._bucket, Key=key, Range=f"bytes={first}-{last}"
        )
        headers = {name: value for name, value in answer.items() if name != "Body"}
        return self._said.status, headers, answer["Body"].get_raw_stream()

    def _objects(self, prefix: str, after: str) -> tuple[list[tuple[str, int]], str | None]:
        answer = self._client.list_objects(Bucket=self._bucket, Prefix=prefix, Marker=after)
        found = [(each["Key"], int(each["Size"])) for each in answer.get("Contents", ())]
        return found, answer["NextMarker"] if _truncated(answer) else None

    def delete(self, key: str, version: str = "") -> None:
        which = {"VersionId": version} if version else {}
        with self._asking("removing", key):
            self._client.delete_object(Bucket=self._bucket, Key=key, **which)

    def date(self) -> str | None:
        with self._asking("asking the time of", ""):
            self._client.list_objects(Bucket=self._bucket, MaxKeys=1)
        date: str | None = self._said.headers.get("Date")
        return date

    def _remember(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        """Keep what the SDK drops. It takes a redirect for success; for us it is an error."""
        said = self._said
        said.status = answer.status_code
        said.headers = answer.headers
        if answer.is_redirect or answer.status_code // 100 == 3:
            raise requests.RequestException("redirected")

    @contextmanager
    def _asking(
        self, doing: str, key: str, body_seconds: float = service.USUAL_SECONDS
    ) -> Iterator[None]:
        self._said.status, self._said.headers = 0, {}
        with super()._asking(doing, key, body_seconds):
            yield

    def _meaning(self, error: Exception, tried: str) -> Answer | Exception | None:
        said = self._said
        if said.status // 100 == 3:
            return Answer(said.status, "", "", None, said.headers.get("Location"))
        if isinstance(error, CosServiceError):
            return _answer(error, said.headers.get("Retry-After"))
        return None


def _answer(error: CosServiceError, retry_after: str | None) -> Answer:
    status, said = error.get_status_code(), error.get_digest_msg()
    code, message = _in_xml(error.get_origin_msg())
    if not code and isinstance(said, dict):  # after a HEAD: what the SDK makes up
        code = said.get("code", "")
    if code == "NoSuchResource":
        code = "NoSuchKey"
    return Answer(status, code, message, retry_after)


def _truncated(page: Mapping[str, Any]) -> bool:
    return bool(page["IsTruncated"] == "true")


def _in_xml(body: str | bytes) -> tuple[str, str]:
    """Code and message in an error's body. The SDK reads neither if another field is missing."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    found = [re.search(f"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    code, message = (unescape(each[1]) if each else "" for each in found)
    return code, message


def _client(settings: COSSettings, hook: Any) -> CosS3Client:
    session = StoreSession(settings.verify, settings.concurrency + 2)
    session.hooks["response"].append(hook)
    host, _, port = (settings.address or "").rpartition(":")
    try:
        credentials = _credentials(settings)
        config = (_RoleConfig if "CredentialInstance" in credentials else CosConfig)(
            Region=settings.region,
            Endpoint=settings.endpoint,
            **credentials,
            Scheme=settings.scheme,
            IP=host or None,
            Port=int(port) if port else None,
            Timeout=(settings.connect_timeout_seconds, settings.read_timeout_seconds),
            Proxies=settings.proxies,
            VerifySSL=settings.verify,
        )
        return CosS3Client(config, retry=0, session=session)
    except (CosClientError, ValueError) as error:
        raise settings.impossible(str(error)) from shown_cause(error)


class _RoleConfig(CosConfig):  # type: ignore[misc]
    """The SDK signs with a role's keys but never sends the token that belongs to them."""

    @property
    def _token(self) -> str | None:
        role = getattr(self, "_credential_inst", None)
        return None if role is None else role.token

    @_token.setter
    def _token(self, _: str | None) -> None:
        """The SDK's constructor sets the token that was given, which is none with a role."""


def _credentials(settings: COSSettings) -> dict[str, Any]:
    if settings.secret_id is None and settings.instance_role_url is not None:
        return {"CredentialInstance": RoleCredentials(settings.instance_role_url)}
    if settings.secret_id is None:
        return {
            "SecretId": os.environ.get("COS_SECRET_ID"),
            "SecretKey": os.environ.get("COS_SECRET_KEY"),
            "Token": os.environ.get("COS_TOKEN"),
        }
    return {
        "SecretId": settings.secret_id,
        "SecretKey": settings.secret_key,
        "Token": settings.token,
    }
