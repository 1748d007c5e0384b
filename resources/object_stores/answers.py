"""What a cloud's answer means: retry, act, or "another process was quicker".

The three services speak nearly the same codes (COS and OSS took them from S3), so one table
serves all. What must always hold: an answer that may pass with time becomes `StoreUnavailable`,
anything else `StoreRefused`, each with what was tried, the service's own code and sentence, and
what to check. Only code and message of an answer are quoted: other fields repeat signed headers.
A quote is cut to one printable line, and shows no login of an address.

An answer that makes no sense (no XML, a header missing, an endless listing) counts as one that may
pass: mostly it did not come from the service, but from something in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuploader_dagster.contracts.retry_after import pause_seconds
from fuploader_dagster.errors import ColdObject, FuploaderError, StoreRefused, StoreUnavailable
from fuploader_dagster.settings.secret import without_logins

LONGEST_QUOTE = 500


class Told(Exception):
    """An answer that the caller knows what to do with: neither trouble nor an error of anybody."""


class AlreadyThere(Told):
    """A create-only request found an object under its key."""


class Missing(Told):
    """There is no such object."""


class PastTheEnd(Told):
    """The range begins after the object's end."""


class UploadGone(Told):
    """The service does not know the multipart upload, or no longer."""


@dataclass(frozen=True)
class Answer:
    """A service's refusal in its own words."""

    status: int
    code: str
    message: str
    retry_after: str | None = None
    location: str | None = None
    """Where a redirect leads to."""


class Refusal(StoreRefused):
    """A refusal that no retry can change, with the service's answer."""

    def __init__(self, message: str, *, hint: str, answer: Answer) -> None:
        super().__init__(message, hint=hint)
        self.answer = answer


_PASSING = {
    "BadDigest": "bytes were damaged in transit",
    "ClientDisconnected": "the connection broke",
    "ConditionalRequestConflict": "another request for this key was in progress",
    "IncompleteBody": "bytes were lost in transit",
    "InternalError": "the service failed",
    "InvalidDigest": "bytes were damaged in transit",
    "OperationAborted": "another request for the bucket was in progress",
    "RequestTimeout": "the connection was too slow",
    "RequestTimeTooSkewed": "check this machine's clock (timedatectl)",
    "ServiceUnavailable": "the service failed",
    "SlowDown": "the service asks to slow down",
    "TemporaryRedirect": "the bucket is new or is being moved; it will be retried",
    "XAmzContentSHA256Mismatch": "bytes were damaged in transit",
}

_HINTS = {
    "AccessDenied": "check that the key has the rights to put, get, list, delete and abort uploads",
    "AccountProblem": "check the account in the provider's console",
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
    "SignatureDoesNotMatch": "check the secret key, that it belongs to this access key, and for a "
    "proxy that changes requests",
    "UserDisable": "check the account in the provider's console",
}

_HINTS_BY_STATUS = {
    301: _HINTS["PermanentRedirect"],
    400: "check region and endpoint, and that this service supports the options that are set",
    401: "check the access key and its secret",
    403: _HINTS["AccessDenied"],
    404: _HINTS["NoSuchBucket"],
    501: "this service does not support that, or not with the options that are set",
    507: _HINTS["QuotaExceeded"],
}

_SIGNALS: dict[str | int, type[Exception]] = {
    "FileAlreadyExists": AlreadyThere,
    "InvalidRange": PastTheEnd,
    "NoSuchKey": Missing,
    "NoSuchUpload": UploadGone,
    "ObjectAlreadyExists": AlreadyThere,
    "PreconditionFailed": AlreadyThere,
    412: AlreadyThere,
    416: PastTheEnd,
}
"""Codes and statuses that are an answer to act upon, and no error."""


def error_for(tried: str, answer: Answer, now_seconds: float) -> Exception:
    """The exception to raise for an answer that is not a success."""
    signal = _SIGNALS.get(answer.code) or _SIGNALS.get(answer.status)
    if signal is not None:
        return signal(tried)
    code, message = quoted(answer.code), quoted(answer.message)
    said = f"{tried}: the service answered {answer.status} {code}".rstrip()
    if message and message != code:
        said += f": {message}"
    if answer.code == "InvalidObjectState":
        return ColdObject(
            said,
            hint="the object is stored in a class that must be restored before it can be read: "
            "restore it (in the provider's console, or with aws s3api restore-object), then try "
            "again",
        )
    if answer.status in (302, 303, 307, 308) and code not in _PASSING:
        return _redirected(said, answer)
    if answer.code in _PASSING or answer.status in (408, 425, 429) or _is_server_side(answer):
        return StoreUnavailable(
            said,
            hint=_PASSING.get(
                answer.code, "it will be retried; if this goes on, check the service's status"
            ),
            retry_after_seconds=pause_seconds(answer.retry_after, now_seconds),
        )
    hint = _HINTS.get(answer.code) or _HINTS_BY_STATUS.get(answer.status, "")
    return Refusal(said, hint=hint, answer=answer)


def quoted(text: str) -> str:
    """Text from outside as one line that may be logged."""
    line = "".join(each if each.isprintable() else " " for each in text[: 2 * LONGEST_QUOTE])
    return without_logins(line)[:LONGEST_QUOTE].strip()


def unreachable(tried: str, address: str, reason: str) -> FuploaderError:
    """The error for a request that got no answer, or met a certificate that we do not trust."""
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return StoreRefused(
            f"{tried}: the certificate of {address} is not trusted: {quoted(reason)}",
            hint="set ca_bundle to the authority's PEM file",
        )
    return StoreUnavailable(
        f"{tried}: no answer from {address}: {quoted(reason)}",
        hint="check that the address is right and can be reached from here, and any proxy in "
        "between",
    )


def late(tried: str, address: str) -> FuploaderError:
    """The error for an answer that came too slowly to wait for its end."""
    return StoreUnavailable(
        f"{tried}: the answer of {address} was not complete in time",
        hint="it will be retried; if the network is this slow, raise read_timeout_seconds",
    )


def makes_no_sense(tried: str, address: str, what: Exception | str) -> FuploaderError:
    """The error for an answer that neither we nor the client library can read."""
    reason = what if isinstance(what, str) else f"{type(what).__name__}: {what}"
    return StoreUnavailable(
        f"{tried}: the answer of {address} makes no sense: {quoted(reason)}",
        hint="it will be retried; if this goes on, check that this is the service's address, and "
        "any proxy in between",
    )


def ignores_ranges(tried: str, address: str) -> FuploaderError:
    """The error for a server that sends the whole object when it is asked for a part."""
    return StoreRefused(
        f"{tried}: {address} ignores ranges: asked for a part, it sends the whole object",
        hint="archives are read in parts: look for a cache or proxy in between that drops Range",
    )


def _redirected(said: str, answer: Answer) -> FuploaderError:
    target = quoted((answer.location or "").partition("?")[0]) or "nowhere"
    return StoreUnavailable(
        f"{said}: it redirects to {target}, and redirects are not followed",
        hint="if the bucket is there, set that address as the endpoint; otherwise look for a proxy "
        "or a login page in between",
    )


def _is_server_side(answer: Answer) -> bool:
    # Completing an upload may answer 200 and then, in the body, that it failed.
    if answer.status < 300:
        return True
    # 501 says "I do not know this", and 507 "the quota is used up": no later attempt changes it.
    return answer.status >= 500 and answer.status not in (501, 507)
