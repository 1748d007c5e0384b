"""A fake of Alibaba OSS that checks signatures by the algorithms of OSS's documentation.

V1  base64(HMAC-SHA1(secret, VERB \\n Content-MD5 \\n Content-Type \\n Date \\n x-oss-headers
    + /bucket/key?subresources))
V4  hex(HMAC-SHA256(key, OSS4-HMAC-SHA256 \\n x-oss-date \\n scope \\n SHA256(canonical request))),
    the key derived from aliyun_v4<secret> over date, region, "oss", "aliyun_v4_request"

(https://help.aliyun.com/zh/oss/developer-reference/). Path style, as for any numeric address.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from tests.servers.fake_bucket import Answer, FakeBucket, Refusal, Request

# Of the documented sub-resources those that this fake knows.
SUBRESOURCES = {"uploads", "uploadId", "partNumber", "versionId", "continuation-token"}
SUBRESOURCES |= {"security-token"}


class FakeOSS(FakeBucket):
    prefix = "x-oss-"
    min_part_bytes = 100 << 10
    region = "cn-test"
    _role_path = ""

    def serve_role(self) -> str:
        """From now on the metadata service of a machine is here as well; returns its address."""
        self._role_path = "/latest/meta-data/ram/security-credentials/role"
        return self.endpoint + self._role_path

    def answer(self, request: Request, operation: str) -> Answer:
        if self._role_path and request.path == self._role_path:
            later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            credentials = {
                "Code": "Success",
                "AccessKeyId": self.key_id,
                "AccessKeySecret": self.secret,
                "SecurityToken": self.token,
                "Expiration": later,
                "LastUpdated": now,
            }
            return Answer(200, {}, json.dumps(credentials).encode())
        return super().answer(request, operation)

    def check_signature(self, request: Request) -> None:
        query = request.query
        tokens = (request.headers, query)
        if self.token and all(one.get("x-oss-security-token") != self.token for one in tokens):
            raise Refusal(403, "InvalidAccessKeyId", "the security token is missing or wrong")
        if "x-oss-signature" in query:
            self._check_address(request)
            return
        stated = request.headers.get("authorization", "")
        if stated.startswith("OSS4-HMAC-SHA256 "):
            self._check_v4(request, stated)
        elif stated.startswith("OSS "):
            self._check_v1(request, stated)
        else:
            raise Refusal(403, "AccessDenied", "the request is not signed")

    def _check_address(self, request: Request) -> None:
        """A presigned address: what is a header otherwise is in the query, and nothing is signed
        of the body."""
        query = {name: value for name, value in request.query.items() if name != "x-oss-signature"}
        moment = query["x-oss-date"]
        begun = calendar.timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ"))
        if time.time() > begun + int(query["x-oss-expires"]):
            raise Refusal(403, "AccessDenied", "Request has expired.")
        headers = {"x-oss-date": moment, "x-oss-content-sha256": "UNSIGNED-PAYLOAD"}
        signed = replace(request, query=query, headers=headers)
        credential, signature = query["x-oss-credential"], request.query["x-oss-signature"]
        self._check_v4(signed, f"Credential={credential},Signature={signature}", headers_signed=())

    def _check_v1(self, request: Request, stated: str) -> None:
        key_id, _, signature = stated.removeprefix("OSS ").partition(":")
        if key_id != self.key_id:
            raise Refusal(403, "InvalidAccessKeyId")
        headers = request.headers
        _refuse_skewed(parsedate_to_datetime(headers["date"]).timestamp())
        own = "".join(
            f"{name}:{value}\n"
            for name, value in sorted(headers.items())
            if name.startswith("x-oss-")
        )
        parameters = "&".join(
            f"{name}={value}" if value else name
            for name, value in sorted(request.query.items())
            if name in SUBRESOURCES
        )
        resource = request.path + (f"?{parameters}" if parameters else "")
        to_sign = "\n".join(
            [
                request.method,
                headers.get("content-md5", ""),
                headers.get("content-type", ""),
                headers["date"],
                own + resource,
            ]
        )
        digest = hmac.new(self.secret.encode(), to_sign.encode(), hashlib.sha1).digest()
        _compare(base64.b64encode(digest).decode(), signature)

    def _check_v4(
        self, request: Request, stated: str, headers_signed: Sequence[str] | None = None
    ) -> None:
        fields = dict(re.findall(r"(\w+)=([^,]*)", stated))
        key_id, *scope = fields["Credential"].split("/")
        if key_id != self.key_id:
            raise Refusal(403, "InvalidAccessKeyId")
        headers = request.headers
        moment = headers["x-oss-date"]
        if scope != [moment[:8], self.region, "oss", "aliyun_v4_request"]:
            raise Refusal(400, "InvalidArgument", f"the scope is wrong: {scope}")
        _refuse_skewed(calendar.timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ")))
        additional = [name for name in fields.get("AdditionalHeaders", "").split(";") if name]
        signed = {
            name: value.strip()
            for name, value in headers.items()
            if name.startswith("x-oss-")
            or name in ("content-type", "content-md5")
            or name in additional
            if headers_signed is None or name in headers_signed
        }
        query = "&".join(
            f"{name}={value}" if value else name
            for name, value in sorted(
                (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
                for name, value in request.query.items()
            )
        )
        canonical = "\n".join(
            [
                request.method,
                quote(request.path, safe="-_.~/"),
                query,
                "".join(f"{name}:{value}\n" for name, value in sorted(signed.items())),
                ";".join(sorted(additional)),
                headers["x-oss-content-sha256"],
            ]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        to_sign = "\n".join(["OSS4-HMAC-SHA256", moment, "/".join(scope), digest])
        key = f"aliyun_v4{self.secret}".encode()
        for each in scope:
            key = hmac.new(key, each.encode(), hashlib.sha256).digest()
        expected = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        _compare(expected, fields["Signature"])

    def key_of(self, request: Request) -> str:
        bucket, _, key = request.path[1:].partition("/")
        if bucket != self.bucket:
            raise Refusal(404, "NoSuchBucket")
        return key

    def objects_page(self, query: Mapping[str, str], keys: list[str]) -> bytes:
        after = bytes.fromhex(query.get("continuation-token", ""))
        left = [key for key in keys if key.encode() > after]
        page = left[: self.page_size]
        more = len(page) < len(left)
        token = page[-1].encode().hex() if more else ""
        following = f"<NextContinuationToken>{token}</NextContinuationToken>" if more else ""
        return (
            "<ListBucketResult><EncodingType>url</EncodingType>"
            f"<Prefix>{quote(query.get('prefix', ''))}</Prefix>{following}"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{self.contents(page)}</ListBucketResult>"
        ).encode()

    def _range_past_the_end(
        self, request: Request, headers: dict[str, str], content: bytes
    ) -> Answer:
        # Documented: without x-oss-range-behavior: standard the whole object comes.
        if request.headers.get("x-oss-range-behavior") == "standard":
            raise Refusal(416, "InvalidRange")
        return Answer(200, headers, content)


def _refuse_skewed(stated_seconds: float) -> None:
    if abs(time.time() - stated_seconds) > 900:
        raise Refusal(403, "RequestTimeTooSkewed")


def _compare(expected: str, stated: str) -> None:
    if not hmac.compare_digest(expected, stated):
        raise Refusal(403, "SignatureDoesNotMatch")
