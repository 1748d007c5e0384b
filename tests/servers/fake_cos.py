"""A fake of Tencent COS that checks signatures by the algorithm of COS's documentation.

    SignKey      = HMAC-SHA1(SecretKey, q-key-time)                             in hex
    HttpString   = method \\n decoded path \\n parameters \\n headers \\n          names sorted
    StringToSign = sha1 \\n q-sign-time \\n SHA1(HttpString) \\n
    q-signature  = HMAC-SHA1(SignKey, StringToSign)                             in hex

(https://cloud.tencent.com/document/product/436/7778). The bucket is in the Host header.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import urllib.request
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlsplit

from tests.servers.fake_bucket import Answer, FakeBucket, Refusal, Request

_STATED = frozenset(
    [
        *("q-sign-algorithm", "q-ak", "q-sign-time", "q-key-time"),
        *("q-header-list", "q-url-param-list", "q-signature"),
    ]
)
"""What an Authorization header says, or the query of a presigned address."""


class FakeCOS(FakeBucket):
    prefix = "x-cos-"
    min_part_bytes = 1 << 20
    region = "ap-test"

    _role_path = ""
    credentials_last_seconds = 3600
    roles_asked = 0

    def serve_role(self) -> str:
        """From now on the metadata service of a machine is here as well; returns its address."""
        self._role_path = "/latest/meta-data/cam/security-credentials/role"
        return f"http://127.0.0.1:{self.port}{self._role_path}"

    def answer(self, request: Request, operation: str) -> Answer:
        if not self._role_path or request.path != self._role_path:
            return super().answer(request, operation)
        self.roles_asked += 1
        credentials = {
            "TmpSecretId": self.key_id,
            "TmpSecretKey": self.secret,
            "Token": self.token,
            "ExpiredTime": int(time.time()) + self.credentials_last_seconds,
            "Code": "Success",
        }
        return Answer(200, {}, json.dumps(credentials).encode())

    @property
    def host(self) -> str:
        return f"{self.bucket}.cos.{self.region}.myqcloud.com"

    def check_signature(self, request: Request) -> None:
        query = {name: value for name, value in request.query.items() if name not in _STATED}
        text = request.headers.get("authorization", "")
        stated = dict(parse_qsl(text, keep_blank_values=True))
        if not text:  # a presigned address
            stated = {name: value for name, value in request.query.items() if name in _STATED}
        if stated.get("q-ak") != self.key_id:
            raise Refusal(403, "InvalidAccessKeyId")
        begin, end = (int(each) for each in stated["q-sign-time"].split(";"))
        if not begin <= time.time() <= end:
            raise Refusal(403, "RequestTimeTooSkewed")
        tokens = (request.headers, query)
        if self.token and all(one.get("x-cos-security-token") != self.token for one in tokens):
            raise Refusal(403, "AccessDenied")
        headers = _named(stated["q-header-list"], request.headers)
        if "host" not in headers:
            raise Refusal(403, "AccessDenied", "host must be signed")
        parameters = _named(
            stated["q-url-param-list"],
            {name.lower(): value for name, value in query.items()},
        )
        if len(parameters) != len(query):
            raise Refusal(403, "AccessDenied", "all parameters must be signed")
        http_string = "\n".join(
            [request.method.lower(), request.path, _joined(parameters), _joined(headers), ""]
        )
        digest = hashlib.sha1(http_string.encode(), usedforsecurity=False).hexdigest()
        to_sign = f"sha1\n{stated['q-sign-time']}\n{digest}\n"
        sign_key = _hmac(self.secret, stated["q-key-time"])
        if not hmac.compare_digest(_hmac(sign_key, to_sign), stated["q-signature"]):
            raise Refusal(403, "SignatureDoesNotMatch")

    def key_of(self, request: Request) -> str:
        if request.headers["host"] != self.host:
            raise Refusal(404, "NoSuchBucket")
        return request.path[1:]

    def objects_page(self, query: Mapping[str, str], keys: list[str]) -> bytes:
        marker = query.get("marker", "").encode()
        left = [key for key in keys if key.encode() > marker]
        page = left[: self.page_size]
        more = len(page) < len(left)
        following = f"<NextMarker>{quote(page[-1])}</NextMarker>" if more else ""
        return (
            "<ListBucketResult><EncodingType>url</EncodingType>"
            f"<Prefix>{quote(query.get('prefix', ''))}</Prefix><Marker/>{following}"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{self.contents(page)}</ListBucketResult>"
        ).encode()


def downloaded_of(fake: FakeCOS, address: str) -> bytes:
    """What a presigned address gives. Its host is Tencent's: the fake is asked in its place."""
    parts = urlsplit(address)
    here = f"http://127.0.0.1:{fake.port}{parts.path}?{parts.query}"
    asked = urllib.request.Request(here, headers={"Host": parts.netloc})
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content


def _named(names: str, values: Mapping[str, str]) -> dict[str, str]:
    """The values of the names that were signed. One that did not come makes the request wrong."""
    wanted = [name for name in names.split(";") if name]
    if missing := [name for name in wanted if name not in values]:
        raise Refusal(403, "SignatureDoesNotMatch", f"{missing} was signed and did not come")
    return {name: values[name] for name in wanted}


def _joined(values: Mapping[str, str]) -> str:
    return "&".join(
        f"{quote(name, safe='-_.~').lower()}={quote(value, safe='-_.~')}"
        for name, value in sorted(values.items())
    )


def _hmac(key: str, text: str) -> str:
    return hmac.new(key.encode(), text.encode(), hashlib.sha1).hexdigest()
