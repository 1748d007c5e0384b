"""The API of Tencent COS through cos-python-sdk-v5.

What must always hold:

- The SDK's own retries are off: one wrapper retries for all backends. Its Retry-After comes
  through a hook, because its errors keep no headers.
- The digest that counts is `x-cos-hash-crc64ecma`, which COS computes from what it holds. The SDK
  does not compare it.
- Create-only is `x-cos-forbid-overwrite`. COS ignores it in buckets with versioning; there the
  look before and after is all there is, and an older version is never lost.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import unescape

import requests
from qcloud_cos import CosClientError, CosConfig, CosS3Client, CosServiceError
from urllib3.exceptions import HTTPError

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.object_stores.answers import (
    Answer,
    Missing,
    PastTheEnd,
    error_for,
    unreachable,
    untrusted,
)
from fuploader_dagster.resources.object_stores.archive_bytes import Algorithm, Part, View
from fuploader_dagster.resources.object_stores.cos_role import RoleCredentials
from fuploader_dagster.resources.object_stores.service import ConfirmedPart, Service, Stated
from fuploader_dagster.storage import UnfinishedUpload

if TYPE_CHECKING:
    from fuploader_dagster.resources.object_stores.cos import COSSettings

META = "x-cos-meta-"
CREATE_ONLY = {"x-cos-forbid-overwrite": "true"}

# The SDK logs each refusal that is raised here anyway, and at DEBUG it logs signing keys.
logging.getLogger("qcloud_cos").setLevel(logging.CRITICAL)


class CosService(Service):
    """The COS API as `CloudObjectStore` needs it. The client is thread-safe."""

    sent_whole: Algorithm = "crc64ecma"
    sent_in_parts: Algorithm = "crc64ecma"

    def __init__(self, settings: COSSettings) -> None:
        self._bucket = settings.bucket
        self._said = threading.local()
        self._client = _client(settings, self._remember)
        self._where = settings.address or settings.endpoint or f"COS in {settings.region}"
        self._encrypted = settings.encryption != "default"
        self._new = _options_of_new_objects(settings)

    def address(self, key: str) -> str:
        return f"cos://{self._bucket}/{key}"

    def stat(self, key: str) -> Stated | None:
        try:
            with self._asking("looking at", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=key)
        except Missing:
            return None
        headers = {name.lower(): value for name, value in answer.items()}
        metadata = {
            name[len(META) :]: value for name, value in headers.items() if name.startswith(META)
        }
        crc = headers.get("x-cos-hash-crc64ecma", "")
        size = int(headers["content-length"])
        return Stated(size, metadata, "crc64ecma" if crc else None, crc)

    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None:
        with self._asking("storing", key):
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=body if len(body) else b"",  # an empty file would be sent in chunks
                ContentMD5=base64.b64encode(md5).decode(),
                Metadata=_meta(metadata) | CREATE_ONLY,
                **self._new,
            )

    def begin(self, key: str, metadata: Mapping[str, str]) -> str:
        with self._asking("beginning an upload of", key):
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=key, Metadata=_meta(metadata) | CREATE_ONLY, **self._new
            )
        return str(answer["UploadId"])

    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> ConfirmedPart:
        with self._asking(f"storing part {part.number} of", key):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=key,
                Body=body,
                PartNumber=part.number,
                UploadId=upload_id,
                ContentMD5=base64.b64encode(md5).decode(),
            )
        tag = {name.lower(): value for name, value in answer.items()}["etag"]
        stated = "" if self._encrypted else tag.strip('"').lower()
        return ConfirmedPart(part.number, part.size_bytes, stated, tag)

    def parts(self, key: str, upload_id: str) -> list[ConfirmedPart]:
        found: list[ConfirmedPart] = []
        page: dict[str, Any] = {"NextPartNumberMarker": 0, "IsTruncated": "true"}
        while page["IsTruncated"] == "true":
            with self._asking("listing the parts of", key):
                page = self._client.list_parts(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload_id,
                    PartNumberMarker=page["NextPartNumberMarker"],
                )
            found += [
                ConfirmedPart(
                    int(part["PartNumber"]),
                    int(part["Size"]),
                    part["ETag"].strip('"').lower(),
                    part["ETag"],
                )
                for part in page.get("Part", ())
            ]
        return found

    def complete(self, key: str, upload_id: str, parts: Sequence[ConfirmedPart]) -> None:
        listed = [{"PartNumber": str(part.number), "ETag": part.tag} for part in parts]
        with self._asking("completing", key):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Part": listed},
                Metadata=CREATE_ONLY,
            )

    def abort(self, key: str, upload_id: str) -> None:
        with self._asking("aborting an upload of", key):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        page: dict[str, Any] = {
            "NextKeyMarker": "",
            "NextUploadIdMarker": "",
            "IsTruncated": "true",
        }
        while page["IsTruncated"] == "true":
            with self._asking("listing unfinished uploads of", prefix):
                page = self._client.list_multipart_uploads(
                    Bucket=self._bucket,
                    Prefix=prefix,
                    KeyMarker=page["NextKeyMarker"] or "",
                    UploadIdMarker=page["NextUploadIdMarker"] or "",
                )
            for each in page.get("Upload", ()):
                begun = datetime.fromisoformat(each["Initiated"].replace("Z", "+00:00"))
                yield UnfinishedUpload(each["Key"], each["UploadId"], begun)

    def read(self, key: str, offset: int, length: int) -> bytes | None:
        wanted = f"bytes={offset}-{offset + length - 1}"
        try:
            with self._asking("reading", key):
                answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=wanted)
                body = answer["Body"]
                data: bytes = body.get_raw_stream().read()
                if len(data) != len(body):
                    raise HTTPError(f"{len(data)} of {len(body)} bytes came")
                return data
        except Missing:
            return None
        except PastTheEnd:
            return b""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        page: dict[str, Any] = {"NextMarker": "", "IsTruncated": "true"}
        while page["IsTruncated"] == "true":
            with self._asking("listing", prefix):
                page = self._client.list_objects(
                    Bucket=self._bucket, Prefix=prefix, Marker=page["NextMarker"]
                )
            for each in page.get("Contents", ()):
                yield each["Key"], int(each["Size"])

    def delete(self, key: str) -> None:
        with self._asking("removing", key):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def date(self) -> str | None:
        with self._asking("asking the time of", ""):
            self._client.list_objects(Bucket=self._bucket, MaxKeys=1)
        date: str | None = self._said.date
        return date

    def _remember(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        self._said.retry_after = answer.headers.get("Retry-After")
        self._said.date = answer.headers.get("Date")

    @contextmanager
    def _asking(self, doing: str, key: str) -> Iterator[None]:
        """One request: turn what the SDK raises into what it means."""
        tried = f"{doing} {self.address(key)}"
        self._said.retry_after = self._said.date = None
        try:
            yield
        except CosServiceError as error:
            raise _meaning(error, tried, self._said.retry_after) from error
        except (CosClientError, requests.RequestException, HTTPError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise untrusted(tried, self._where, str(error)) from error
            raise unreachable(tried, self._where, str(error)) from error


def _meaning(error: CosServiceError, tried: str, retry_after: str | None) -> Exception:
    status, said = error.get_status_code(), error.get_digest_msg()
    code, message = _in_xml(error.get_origin_msg())
    if not code and isinstance(said, dict):  # of a HEAD: what the SDK made up
        code = said.get("code", "")
    if code in ("NoSuchKey", "NoSuchResource"):
        return Missing(tried)
    if status == 416 or code == "InvalidRange":
        return PastTheEnd(tried)
    return error_for(tried, Answer(status, code, message, retry_after), time.time())


def _in_xml(body: str | bytes) -> tuple[str, str]:
    """Code and message of an error's body. The SDK gives up if any other field is missing."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    found = [re.search(f"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    code, message = (unescape(each[1]) if each else "" for each in found)
    return code, message


def _client(settings: COSSettings, hook: Any) -> CosS3Client:
    session = requests.Session()
    session.hooks["response"].append(hook)
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=settings.concurrency + 2)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    host, _, port = (settings.address or "").rpartition(":")
    try:
        kind = (
            _RoleConfig if settings.secret_id is None and settings.instance_role_url else CosConfig
        )
        config = kind(
            Region=settings.region,
            Endpoint=settings.endpoint,
            **_credentials(settings),
            Scheme=settings.scheme,
            IP=host or None,
            Port=int(port) if port else None,
            Timeout=(settings.connect_timeout_seconds, settings.read_timeout_seconds),
            Proxies=settings.proxies,
            VerifySSL=settings.verify,
        )
        return CosS3Client(config, retry=0, session=session)
    except (CosClientError, ValueError) as error:
        raise ConfigError(
            f"{settings.describe()}: {error}", hint="check the store's settings"
        ) from error


class _RoleConfig(CosConfig):  # type: ignore[misc]
    """The SDK signs with a role's keys but never sends the token that belongs to them."""

    @property
    def _token(self) -> str | None:
        role = getattr(self, "_credential_inst", None)
        return None if role is None else role.token

    @_token.setter
    def _token(self, _: str | None) -> None:
        """The SDK's constructor sets what was given instead of a role: nothing."""


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


def _options_of_new_objects(settings: COSSettings) -> dict[str, str]:
    encryption = None if settings.encryption == "default" else settings.encryption
    options = {
        "StorageClass": settings.storage_class,
        "ServerSideEncryption": encryption,
        "SSEKMSKeyId": settings.kms_key_id,
        "Tagging": settings.tagging,
    }
    return {name: value for name, value in options.items() if value is not None}


def _meta(metadata: Mapping[str, str]) -> dict[str, str]:
    return {META + name: value for name, value in metadata.items()}
