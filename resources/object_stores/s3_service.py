"""The S3 API through boto3, for Amazon S3, Ceph, Swift, MinIO, R2 and other compatibles.

What must always hold:

- boto3's own retries are off: one wrapper retries for all backends (`s3_client` sets it up).
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
from contextlib import AbstractContextManager, closing
from typing import IO, TYPE_CHECKING, Any, cast

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.resources.object_stores.answers import (
    Answer,
    Missing,
    PastTheEnd,
    error_for,
    unreachable,
    untrusted,
)
from fuploader_dagster.resources.object_stores.archive_bytes import Algorithm, Part, View
from fuploader_dagster.resources.object_stores.asking import (
    COMPLETING_SECONDS,
    USUAL_SECONDS,
    asking,
    exact_range,
    pages,
    reading_seconds,
)
from fuploader_dagster.resources.object_stores.s3_client import (
    customer_key,
    open_client,
    options_of_new_objects,
)
from fuploader_dagster.resources.object_stores.service import ConfirmedPart, Service, Stated
from fuploader_dagster.secret import without_logins
from fuploader_dagster.storage import UnfinishedUpload

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

    from fuploader_dagster.resources.object_stores.s3 import S3Settings


class S3Service(Service):
    """The S3 API as `CloudObjectStore` needs it. boto3's clients are thread-safe."""

    sent_whole: Algorithm = "md5"
    sent_in_parts: Algorithm = "md5-of-parts"

    def __init__(self, settings: S3Settings) -> None:
        self._bucket = settings.bucket
        self._client = open_client(settings)
        self._where = without_logins(self._client.meta.endpoint_url)
        self._silence_seconds = settings.read_timeout_seconds
        self._own_key = customer_key(settings)
        # With these an ETag is not the md5 of the content.
        self._encrypted = bool(self._own_key) or settings.encryption.startswith("aws:kms")
        self._new = options_of_new_objects(settings) | self._own_key

    def address(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def stat(self, key: str) -> Stated | None:
        try:
            with self._asking("looking at", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=key, **self._own_key)
                algorithm, digest = _stated_digest(answer)
                metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
                return Stated(answer["ContentLength"], metadata, algorithm, digest)
        except Missing:
            return None

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
        doing = "listing the parts of"

        def page(after: int) -> tuple[list[ConfirmedPart], int | None]:
            with self._asking(doing, key):
                answer = self._client.list_parts(
                    Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumberMarker=after
                )
                found = [
                    ConfirmedPart(
                        part["PartNumber"],
                        part["Size"],
                        part["ETag"].strip('"').lower(),
                        part["ETag"],
                    )
                    for part in answer.get("Parts", ())
                ]
                return found, answer["NextPartNumberMarker"] if answer["IsTruncated"] else None

        return list(pages(0, page, f"{doing} {self.address(key)}", self._where))

    def complete(self, key: str, upload_id: str, parts: Sequence[ConfirmedPart]) -> None:
        with self._asking("completing", key, COMPLETING_SECONDS):
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
        doing = "listing unfinished uploads of"

        def page(
            after: tuple[str, str],
        ) -> tuple[list[UnfinishedUpload], tuple[str, str] | None]:
            with self._asking(doing, prefix):
                answer = self._client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=prefix, KeyMarker=after[0], UploadIdMarker=after[1]
                )
                found = [
                    UnfinishedUpload(each["Key"], each["UploadId"], each["Initiated"])
                    for each in answer.get("Uploads", ())
                ]
                if not answer.get("IsTruncated"):
                    return found, None
                return found, (answer["NextKeyMarker"], answer.get("NextUploadIdMarker", ""))

        return pages(("", ""), page, f"{doing} {self.address(prefix)}", self._where)

    def read(self, key: str, offset: int, length: int) -> bytes | None:
        wanted = f"bytes={offset}-{offset + length - 1}"
        try:
            with self._asking("reading", key, reading_seconds(length)):
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=key, Range=wanted, **self._own_key
                )
                meta = answer["ResponseMetadata"]
                with closing(answer["Body"]) as body:
                    return exact_range(
                        f"reading {self.address(key)}",
                        self._where,
                        (offset, length),
                        meta["HTTPStatusCode"],
                        meta["HTTPHeaders"],
                        body.read,
                    )
        except Missing:
            return None
        except PastTheEnd:
            return b""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        def page(token: str) -> tuple[list[tuple[str, int]], str | None]:
            after: Any = {"ContinuationToken": token} if token else {}
            with self._asking("listing", prefix):
                answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **after)
                found = [(each["Key"], each["Size"]) for each in answer.get("Contents", ())]
                return found, answer["NextContinuationToken"] if answer["IsTruncated"] else None

        return pages("", page, f"listing {self.address(prefix)}", self._where)

    def delete(self, key: str) -> None:
        with self._asking("removing", key):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def date(self) -> str | None:
        with self._asking("asking the time of", ""):
            answer = self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
            return answer["ResponseMetadata"]["HTTPHeaders"].get("date")

    def _asking(
        self, doing: str, key: str, body_seconds: float = USUAL_SECONDS
    ) -> AbstractContextManager[None]:
        """One request: turn what boto3 raises into what it means."""
        tried = f"{doing} {self.address(key)}"

        def meaning(error: Exception) -> Exception | None:
            if isinstance(error, ClientError):
                return _meaning(error, tried)
            if isinstance(error, (BotoCoreError, HTTPError)):
                return _meaning_without_answer(error, tried, self._where)
            return None

        return asking(
            tried,
            self._where,
            meaning,
            silence_seconds=self._silence_seconds,
            body_seconds=body_seconds,
        )


def _meaning(error: ClientError, tried: str) -> Exception:
    said, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    status = meta.get("HTTPStatusCode", 0)
    code = said.get("Code", "")
    if code == "NoSuchKey" or (status == 404 and code in ("404", "NotFound", "")):
        return Missing(tried)
    if status == 416 or code == "InvalidRange":
        return PastTheEnd(tried)
    headers = meta.get("HTTPHeaders", {})
    code = "" if code == str(status) else code  # an answer without a body, as to HEAD
    answer = Answer(
        status, code, said.get("Message", ""), headers.get("retry-after"), headers.get("location")
    )
    return error_for(tried, answer, time.time())


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
        HTTPError,
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
    etag = answer.get("ETag", "").strip('"').lower()
    if re.fullmatch("[0-9a-f]{32}", etag):
        return "md5", etag
    if re.fullmatch("[0-9a-f]{32}-[1-9][0-9]{0,4}", etag):
        return "md5-of-parts", etag
    return None, ""


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
