"""The S3 API through boto3, for Amazon S3, Ceph, Swift, MinIO, R2 and other compatibles.

What must always hold:

- boto3's own retries are off: one wrapper retries for all backends (`s3_client` sets it up).
- The checksum is sent as Content-MD5, which every server understands and checks. The trailing
  checksums that boto3 sends by default make some servers fail and others store the trailer.
- The signature covers the body through that header, over http as over https: the additional sha256
  that boto3 would compute over http is a third digest of the same bytes and proves nothing more.
- The ETag counts as a digest only where it is one: not with KMS or customer keys, whether we asked
  for them or the bucket has them by default.
- A service that does not support If-None-Match (it answers 501) gets the put without it, after a
  look.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from fuploader_dagster.contracts.object_store import UnfinishedUpload
from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.resources.object_stores import answers, service
from fuploader_dagster.resources.object_stores.archive_bytes import Algorithm, Part, View
from fuploader_dagster.resources.object_stores.cloud import SDK_NAMES
from fuploader_dagster.resources.object_stores.s3_client import customer_key, open_client
from fuploader_dagster.settings.secret import without_logins

if TYPE_CHECKING:
    from fuploader_dagster.resources.object_stores.s3 import S3Settings


log = logging.getLogger(__name__)

_MD5 = re.compile("[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile("[0-9a-f]{32}-[1-9][0-9]{0,4}")


class S3Service(service.Service):
    """The S3 API as `CloudObjectStore` needs it. boto3's clients are thread-safe."""

    without_answer = (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.IncompleteReadError,
        HTTPError,
        boto.CredentialRetrievalError,
        boto.MetadataRetrievalError,
    )
    sent_whole: Algorithm = "md5"
    sent_in_parts: Algorithm = "md5-of-parts"

    def __init__(self, settings: S3Settings) -> None:
        self._bucket = settings.bucket
        self._client = open_client(settings)
        where = without_logins(self._client.meta.endpoint_url)
        super().__init__(f"s3://{self._bucket}", where, settings.read_timeout_seconds)
        self._own_key = customer_key(settings)
        # With these an ETag is not the md5 of the content.
        self._encrypted = bool(self._own_key) or settings.encryption.startswith("aws:kms")
        self._knows_conditions = True
        self._new: dict[str, Any] = settings.options_of_new_objects(*SDK_NAMES) | self._own_key

    def head(self, key: str) -> service.Stated | None:
        try:
            with self._asking("looking at", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=key, **self._own_key)
                algorithm, digest = _stated_digest(answer)
                metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
                size, version = answer.get("ContentLength"), answer.get("VersionId", "")
        except answers.Missing:
            return None
        size = self.listed_size(key) if size is None else size
        return service.Stated(size, metadata, algorithm, digest, version)

    def presigned(self, key: str, seconds: int) -> str | None:
        if self._own_key:  # whoever downloads the object would have to send the key
            return None
        with self._asking("signing an address of", key):
            return self._client.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=seconds
            )

    def put(self, key: str, body: View, md5: bytes, metadata: Mapping[str, str]) -> None:
        def send(condition: Any) -> None:
            body.seek(0)
            with self._asking("storing", key):
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=cast("IO[bytes]", body),
                    ContentLength=len(body),
                    ContentMD5=service.base64_text(md5),
                    Metadata=metadata,
                    **condition,
                    **self._new,
                )

        self._create_only(key, send)

    def _create_only(self, key: str, send: Callable[[Any], None]) -> None:
        """Send on the condition that no object is there; or after a look, without conditions."""
        if self._knows_conditions:
            try:
                send({"IfNoneMatch": "*"})
            except answers.Refusal as refusal:
                if refusal.answer.status != 501:
                    raise
            else:
                return
        if self.stat(key) is not None:
            raise answers.AlreadyThere(key)
        send({})
        if self._knows_conditions:
            self._knows_conditions = False
            log.warning(
                "%s does not support If-None-Match: each put looks before and after it instead",
                self._where,
            )

    def begin(self, key: str, metadata: Mapping[str, str]) -> str:
        with self._asking("beginning an upload of", key):
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=key, Metadata=metadata, **self._new
            )
            self._encrypted |= _is_foreign(answer)
            return answer["UploadId"]

    def put_part(
        self, key: str, upload_id: str, part: Part, body: View, md5: bytes
    ) -> service.ConfirmedPart:
        with self._asking(f"storing part {part.number} of", key):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=part.number,
                Body=cast("IO[bytes]", body),
                ContentLength=len(body),
                ContentMD5=service.base64_text(md5),
                **self._own_key,
            )
            tag = answer.get("ETag", "")
            plain = not self._encrypted and not _is_foreign(answer)
            stated = tag.strip('"').lower() if plain else ""
            return service.ConfirmedPart(
                part.number, part.size_bytes, stated if _MD5.fullmatch(stated) else "", tag
            )

    def _parts(self, key: str, upload_id: str, after: str) -> service.PartsPage:
        answer = self._client.list_parts(
            Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumberMarker=int(after or 0)
        )
        found = [
            service.ConfirmedPart.listed(part["PartNumber"], part["Size"], part.get("ETag", ""))
            for part in answer.get("Parts", ())
        ]
        return found, str(answer["NextPartNumberMarker"]) if answer["IsTruncated"] else None

    def complete(self, key: str, upload_id: str, parts: Sequence[service.ConfirmedPart]) -> None:
        def send(condition: Any) -> None:
            with self._asking("completing", key, service.COMPLETING_SECONDS):
                self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload_id,
                    MultipartUpload={
                        "Parts": [{"PartNumber": part.number, "ETag": part.tag} for part in parts]
                    },
                    **condition,
                )

        self._create_only(key, send)

    def abort(self, key: str, upload_id: str) -> None:
        with self._asking("aborting an upload of", key):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    def _uploads(self, prefix: str, key: str, upload_id: str) -> service.UploadsPage:
        answer = self._client.list_multipart_uploads(
            Bucket=self._bucket, Prefix=prefix, KeyMarker=key, UploadIdMarker=upload_id
        )
        found = [
            UnfinishedUpload(each["Key"], each["UploadId"], each["Initiated"])
            for each in answer.get("Uploads", ())
        ]
        if not answer.get("IsTruncated"):
            return found, None
        return found, (answer["NextKeyMarker"], answer.get("NextUploadIdMarker", ""))

    def _get(self, key: str, first: int, last: int) -> tuple[int, Mapping[str, str], Any]:
        answer = self._client.get_object(
            Bucket=self._bucket, Key=key, Range=f"bytes={first}-{last}", **self._own_key
        )
        meta = answer["ResponseMetadata"]
        return meta["HTTPStatusCode"], meta["HTTPHeaders"], answer["Body"]

    def _objects(self, prefix: str, after: str) -> tuple[list[tuple[str, int]], str | None]:
        place: Any = {"ContinuationToken": after} if after else {}
        answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **place)
        found = [(each["Key"], each["Size"]) for each in answer.get("Contents", ())]
        return found, answer["NextContinuationToken"] if answer["IsTruncated"] else None

    def delete(self, key: str, version: str = "") -> None:
        which: Any = {"VersionId": version} if version else {}
        with self._asking("removing", key):
            self._client.delete_object(Bucket=self._bucket, Key=key, **which)

    def date(self) -> str | None:
        with self._asking("asking the time of", ""):
            answer = self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
            return answer["ResponseMetadata"]["HTTPHeaders"].get("date")

    def _meaning(self, error: Exception, tried: str) -> answers.Answer | Exception | None:
        if isinstance(error, ClientError):
            return _answer(error)
        if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
            return StoreRefused(
                f"{tried}: {error}",
                hint="set access_key_id and secret_access_key, or profile, or use an instance role",
            )
        if isinstance(error, BotoCoreError) and not isinstance(error, self.without_answer):
            return StoreRefused(f"{tried}: {error}", hint="check the store's settings")
        return None


def _answer(error: ClientError) -> answers.Answer:
    said, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    status = meta.get("HTTPStatusCode", 0)
    code = said.get("Code") or ""  # an element that is empty is None
    if status == 404 and code in ("404", "NotFound", ""):
        code = "NoSuchKey"
    elif code == str(status):  # an answer without a body, as to HEAD
        code = ""
    headers = meta.get("HTTPHeaders", {})
    return answers.Answer(
        status, code, said.get("Message") or "", headers.get("retry-after"), headers.get("location")
    )


def _is_foreign(answer: Mapping[str, Any]) -> bool:
    """Whether it was encrypted with a key that makes the ETag something else than a digest.

    Buckets may do so by default: the answer says so, whatever we asked for.
    """
    how = answer.get("ServerSideEncryption") or "AES256"
    return how != "AES256" or bool(answer.get("SSECustomerAlgorithm"))


def _stated_digest(answer: Mapping[str, Any]) -> tuple[Algorithm | None, str]:
    """The ETag, where it is a digest of the content."""
    etag = answer.get("ETag", "").strip('"').lower()
    if _is_foreign(answer):
        return None, ""
    if _MD5.fullmatch(etag):
        return "md5", etag
    if _MD5_OF_PARTS.fullmatch(etag):
        return "md5-of-parts", etag
    return None, ""
