"""The S3 API through boto3, for Amazon S3, Ceph, Swift, MinIO, R2 and other compatibles.

What must always hold:

- boto3's own retries are off: one wrapper retries for all backends.
- A checksum travels as Content-MD5, which every server understands and checks. The trailing
  checksums that boto3 sends by default make some servers fail and others store the trailer.
- The signature covers the body through that header, over http as over https: the sha256 that boto3
  would compute over http besides is a third digest of the same bytes and proves nothing more.
- The ETag counts as a digest only where it is one: not under KMS or customer keys.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO, TYPE_CHECKING, Any, cast

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader
from botocore.parsers import ResponseParserError
from botocore.session import Session as CoreSession

from fuploader_dagster.errors import ConfigError, StoreRefused
from fuploader_dagster.resources.object_stores.answers import (
    Answer,
    Missing,
    PastTheEnd,
    error_for,
    unreachable,
    untrusted,
)
from fuploader_dagster.resources.object_stores.archive_bytes import Algorithm, Blocks, Part, View
from fuploader_dagster.resources.object_stores.service import ConfirmedPart, Service, Stated
from fuploader_dagster.storage import UnfinishedUpload

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

    from fuploader_dagster.resources.object_stores.s3 import S3Settings


class S3Service(Service):
    """The S3 API as `CloudObjectStore` needs it. boto3's clients are thread-safe."""

    sent_whole: Algorithm = "md5"
    sent_in_parts: Algorithm = "md5-of-parts"

    def __init__(self, settings: S3Settings) -> None:
        self._bucket = settings.bucket
        self._client = _client(settings)
        self._endpoint = self._client.meta.endpoint_url
        self._own_key = _customer_key(settings)
        # With these an ETag is not the md5 of the content.
        self._encrypted = bool(self._own_key) or settings.encryption.startswith("aws:kms")
        self._new = _options_of_new_objects(settings) | self._own_key

    def address(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def stat(self, key: str) -> Stated | None:
        try:
            with self._asking("looking at", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=key, **self._own_key)
        except Missing:
            return None
        algorithm, digest = _stated_digest(answer)
        metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
        return Stated(answer["ContentLength"], metadata, algorithm, digest)

    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None:
        with self._asking("storing", key):
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=cast("IO[bytes]", body),
                ContentLength=len(body),
                ContentMD5=_base64(md5),
                Metadata=metadata,
                IfNoneMatch="*",
                **self._new,
            )

    def begin(self, key: str, metadata: Mapping[str, str]) -> str:
        with self._asking("beginning an upload of", key):
            return self._client.create_multipart_upload(
                Bucket=self._bucket, Key=key, Metadata=metadata, **self._new
            )["UploadId"]

    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> ConfirmedPart:
        with self._asking(f"storing part {part.number} of", key):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=part.number,
                Body=cast("IO[bytes]", body),
                ContentLength=len(body),
                ContentMD5=_base64(md5),
                **self._own_key,
            )
        md5_stated = "" if self._encrypted else answer["ETag"].strip('"').lower()
        return ConfirmedPart(part.number, part.size_bytes, md5_stated, answer["ETag"])

    def parts(self, key: str, upload_id: str) -> list[ConfirmedPart]:
        with self._asking("listing the parts of", key):
            pages = self._client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=key, UploadId=upload_id
            )
            return [
                ConfirmedPart(
                    part["PartNumber"], part["Size"], part["ETag"].strip('"').lower(), part["ETag"]
                )
                for page in pages
                for part in page.get("Parts", ())
            ]

    def complete(self, key: str, upload_id: str, parts: Sequence[ConfirmedPart]) -> None:
        with self._asking("completing", key):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={
                    "Parts": [{"PartNumber": part.number, "ETag": part.tag} for part in parts]
                },
                IfNoneMatch="*",
            )

    def abort(self, key: str, upload_id: str) -> None:
        with self._asking("aborting an upload of", key):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        with self._asking("listing unfinished uploads of", prefix):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=prefix
            )
            for page in pages:
                for each in page.get("Uploads", ()):
                    yield UnfinishedUpload(each["Key"], each["UploadId"], each["Initiated"])

    def read(self, key: str, offset: int, length: int) -> bytes | None:
        wanted = f"bytes={offset}-{offset + length - 1}"
        try:
            with self._asking("reading", key):
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=key, Range=wanted, **self._own_key
                )
                return answer["Body"].read()
        except Missing:
            return None
        except PastTheEnd:
            return b""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        with self._asking("listing", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            )
            for page in pages:
                for each in page.get("Contents", ()):
                    yield each["Key"], each["Size"]

    def delete(self, key: str) -> None:
        with self._asking("removing", key):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def date(self) -> str | None:
        with self._asking("asking the time of", ""):
            answer = self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
        return answer["ResponseMetadata"]["HTTPHeaders"].get("date")

    @contextmanager
    def _asking(self, doing: str, key: str) -> Iterator[None]:
        """One request: turn what boto3 raises into what it means."""
        tried = f"{doing} {self.address(key)}"
        try:
            yield
        except ClientError as error:
            raise _meaning(error, tried) from error
        except (BotoCoreError, ResponseParserError) as error:
            raise _meaning_without_answer(error, tried, self._endpoint) from error


def _meaning(error: ClientError, tried: str) -> Exception:
    said, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    status = meta.get("HTTPStatusCode", 0)
    code = said.get("Code", "")
    if code == "NoSuchKey" or (status == 404 and code in ("404", "NotFound", "")):
        return Missing(tried)
    if status == 416 or code == "InvalidRange":
        return PastTheEnd(tried)
    retry_after = meta.get("HTTPHeaders", {}).get("retry-after")
    code = "" if code == str(status) else code  # an answer without a body, as to HEAD
    return error_for(tried, Answer(status, code, said.get("Message", ""), retry_after), time.time())


def _meaning_without_answer(error: Exception, tried: str, endpoint: str) -> Exception:
    reason = str(error)
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in reason:
        return untrusted(tried, endpoint, reason)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return StoreRefused(
            f"{tried}: {reason}",
            hint="set access_key_id and secret_access_key, or a profile, or an instance role",
        )
    passing = (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.IncompleteReadError,
        ResponseParserError,
        boto.CredentialRetrievalError,
        boto.MetadataRetrievalError,
    )
    if isinstance(error, passing):
        return unreachable(tried, endpoint, reason)
    return StoreRefused(f"{tried}: {reason}", hint="check the store's settings")


def _stated_digest(answer: HeadObjectOutputTypeDef) -> tuple[Algorithm | None, str]:
    """The ETag, where it is a digest of the content."""
    foreign_key = answer.get("ServerSideEncryption", "").startswith("aws:kms")
    if foreign_key or answer.get("SSECustomerAlgorithm"):
        return None, ""
    etag = answer["ETag"].strip('"').lower()
    if re.fullmatch("[0-9a-f]{32}", etag):
        return "md5", etag
    if re.fullmatch("[0-9a-f]{32}-[1-9][0-9]{0,4}", etag):
        return "md5-of-parts", etag
    return None, ""


def _client(settings: S3Settings) -> S3Client:
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": settings.addressing_style, "payload_signing_enabled": False},
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        max_pool_connections=settings.concurrency + 2,
        proxies=settings.proxies,
    )
    try:
        session = boto3.session.Session(
            botocore_session=_core_session(),
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=settings.secret_access_key,
            aws_session_token=settings.session_token,
            region_name=settings.region,
            profile_name=settings.profile,
        )
        client = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            verify=settings.verify,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"{settings.describe()}: {error}", hint="check the store's settings"
        ) from error
    client.meta.events.register("before-send.s3", _send_in_large_blocks)
    return client


def read_models() -> None:
    """Read what describes S3's API now, for the stores that are opened later in this process and
    its forks: 0.3 s of CPU. Sends nothing."""
    with suppress(BotoCoreError):  # such as a profile that is missing: opening a store will tell
        session = boto3.session.Session("none", "none", botocore_session=_core_session())
        session.client("s3", region_name="us-east-1")


def _core_session() -> CoreSession:
    """A session of its own, except that what describes S3's API is read once per process.

    Each session would read and parse these files again: 0.1 s of CPU for every store opened.
    """
    session = CoreSession()
    models = _models(session.get_config_variable("data_path"))
    models.search_paths[:] = dict.fromkeys(models.search_paths)  # boto3 adds its own each time
    session.register_component("data_loader", models)
    return session


@cache
def _models(folders: str | None) -> Loader:
    return create_loader(folders)


def _send_in_large_blocks(request: AWSPreparedRequest, **_: Any) -> None:
    if isinstance(request.body, View):
        request.body = Blocks(request.body)


def _customer_key(settings: S3Settings) -> dict[str, Any]:
    if settings.customer_key is None:
        return {}
    try:
        key = base64.b64decode(settings.customer_key, validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(
            "S3.customer_key is not 32 bytes in base64", hint="openssl rand -base64 32"
        )
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}


def _options_of_new_objects(settings: S3Settings) -> dict[str, Any]:
    options = {
        "StorageClass": settings.storage_class,
        "ServerSideEncryption": None if settings.encryption == "default" else settings.encryption,
        "SSEKMSKeyId": settings.kms_key_id,
        "Tagging": settings.tagging,
    }
    return {name: value for name, value in options.items() if value is not None}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
