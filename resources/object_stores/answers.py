"""What a cloud's answer means: try again, act, or "somebody was quicker".

The three services speak nearly the same codes (COS and OSS took them from S3), so one table
serves all. What must always hold: an answer that may pass with time becomes `StoreUnavailable`,
anything else `StoreRefused`, each with what was tried, the service's own code and sentence, and
what to check. Of an answer only code and message are quoted: other fields repeat signed headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from fuploader_dagster.errors import FuploaderError, StoreRefused, StoreUnavailable


class AlreadyThere(Exception):
    """A create-only request found an object under its key."""


class Missing(Exception):
    """There is no such object."""


class PastTheEnd(Exception):
    """The range begins behind the object's end."""


class UploadGone(Exception):
    """The service does not know the multipart upload (any more)."""


@dataclass(frozen=True)
class Answer:
    """A service's refusal in its own words."""

    status: int
    code: str
    message: str
    retry_after: str | None = None


_PASSING = {
    "BadDigest": "bytes were damaged on the way",
    "ClientDisconnected": "the connection broke",
    "ConditionalRequestConflict": "another request for the key was under way",
    "IncompleteBody": "bytes were lost on the way",
    "InternalError": "the service failed",
    "InvalidDigest": "bytes were damaged on the way",
    "OperationAborted": "another request for the bucket was under way",
    "RequestTimeout": "the connection was too slow",
    "RequestTimeTooSkewed": "check this machine's clock (timedatectl)",
    "ServiceUnavailable": "the service failed",
    "SlowDown": "the service asks to slow down",
    "XAmzContentSHA256Mismatch": "bytes were damaged on the way",
}

_HINTS = {
    "AccessDenied": "check the key's rights: put, get, list, abort uploads and delete",
    "AccountProblem": "look at the account in the provider's console",
    "AuthorizationHeaderMalformed": "check the region",
    "ExpiredToken": "renew the temporary credentials",
    "InvalidAccessKeyId": "check the access key id, and that it belongs to this endpoint",
    "InvalidBucketName": "check the bucket's name",
    "InvalidToken": "renew the temporary credentials",
    "InvalidStorageClass": "check storage_class",
    "NoSuchBucket": "check the bucket's name, region and endpoint; it is not created for you",
    "PermanentRedirect": "the bucket is in another region: check region and endpoint",
    "QuotaExceeded": "free space in the bucket or raise its quota",
    "SecurityTokenExpired": "renew the temporary credentials",
    "SignatureDoesNotMatch": "check the secret key, and for a proxy that changes requests",
    "UserDisable": "look at the account in the provider's console",
}

_HINTS_BY_STATUS = {
    301: _HINTS["PermanentRedirect"],
    400: "check region, endpoint and whether this service knows the options that are set",
    401: "check the access key and its secret",
    403: _HINTS["AccessDenied"],
    404: _HINTS["NoSuchBucket"],
    501: "this service does not know an option that is set",
    507: _HINTS["QuotaExceeded"],
}

_TAKEN = {"PreconditionFailed", "FileAlreadyExists", "ObjectAlreadyExists"}


def error_for(tried: str, answer: Answer, now_seconds: float) -> Exception:
    """The exception to raise for an answer that is no success."""
    if answer.code in _TAKEN or answer.status == 412:
        return AlreadyThere(answer.code)
    if answer.code == "NoSuchUpload":
        return UploadGone(answer.message)
    said = f"{tried}: the service answered {answer.status} {answer.code}".rstrip()
    if answer.message and answer.message != answer.code:
        said += f": {answer.message}"
    if answer.code in _PASSING or answer.status in (408, 425, 429) or _is_server_side(answer):
        return StoreUnavailable(
            said,
            hint=_PASSING.get(
                answer.code, "it is tried again; see the service's status if it stays"
            ),
            retry_after_seconds=_seconds(answer.retry_after, now_seconds),
        )
    hint = _HINTS.get(answer.code) or _HINTS_BY_STATUS.get(answer.status, "")
    return StoreRefused(said, hint=hint)


def unreachable(tried: str, address: str, reason: str) -> FuploaderError:
    """The error for a request that got no answer at all."""
    return StoreUnavailable(
        f"{tried}: no answer from {address}: {reason}",
        hint="check that the address is right and reachable from here, and any proxy between",
    )


def untrusted(tried: str, address: str, reason: str) -> FuploaderError:
    """The error for a server whose certificate nobody vouches for."""
    return StoreRefused(
        f"{tried}: the certificate of {address} is not trusted: {reason}",
        hint="set ca_bundle to the authority's PEM file",
    )


def _is_server_side(answer: Answer) -> bool:
    # Completing an upload may answer 200 and then, in the body, that it failed.
    if answer.status < 300:
        return True
    # 501 says "I do not know this", and 507 "the quota is used up": no later attempt changes it.
    return answer.status >= 500 and answer.status not in (501, 507)


def _seconds(retry_after: str | None, now_seconds: float) -> float | None:
    """Retry-After is a number of seconds or a date."""
    if not retry_after:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now_seconds)
    except ValueError:
        return None
