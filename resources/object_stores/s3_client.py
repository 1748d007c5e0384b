"""boto3's client for one bucket, set up so that it does what we ask and nothing else.

What must always hold: it retries nothing, adds no checksum, follows no redirect of a server that is
not Amazon's, and its answers end in time (`connections`).
"""

from __future__ import annotations

import base64
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader
from botocore.session import Session as CoreSession

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.object_stores.archive_bytes import Blocks, View
from fuploader_dagster.resources.object_stores.connections import punctual
from fuploader_dagster.settings.secret import shown_cause

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client

    from fuploader_dagster.resources.object_stores.s3 import S3Settings


def open_client(settings: S3Settings) -> S3Client:
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        signature_version="s3v4",  # otherwise presigned addresses have the older, refused by many
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
            # None: boto3 takes the certificates to trust from the environment (AWS_CA_BUNDLE).
            verify=(settings.ca_bundle if settings.verify_tls else False),
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise settings.impossible(str(error)) from shown_cause(error)
    client.meta.events.register("before-send.s3", _send_in_large_blocks)
    if not _is_amazons(settings.endpoint_url):
        client.meta.events.register_first("needs-retry.s3", _follow_no_redirect)
    pools = client._endpoint.http_session._pool_classes_by_scheme  # type: ignore[attr-defined]
    pools.update(punctual(pools))
    return client


def read_models() -> None:
    """Read the files that describe S3's API now, for the stores that this process and its forks
    open later: 0.3 s of CPU. Sends nothing."""
    with suppress(BotoCoreError):  # a missing profile, for example: opening a store will raise it
        session = boto3.session.Session("none", "none", botocore_session=_core_session())
        session.client("s3", region_name="us-east-1")


def _core_session() -> CoreSession:
    """A session of its own that shares the description of S3's API, read once per process.

    Otherwise each session would read and parse those files: 0.1 s of CPU for every store opened.
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


def _is_amazons(endpoint_url: str | None) -> bool:
    host = urlsplit(endpoint_url).hostname if endpoint_url is not None else ".amazonaws.com"
    return (host or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _follow_no_redirect(request_dict: dict[str, Any], **_: Any) -> None:
    """Tell botocore that it has followed a redirect already.

    Amazon's own redirects lead from one region to another, to a host that botocore builds itself
    from the region's name. Any other server's would only make it ask again, some of them endlessly,
    and hide the reason of a refusal.
    """
    request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True


def customer_key(settings: S3Settings) -> dict[str, Any]:
    if settings.customer_key is None:
        return {}
    try:
        key = base64.b64decode(settings.customer_key, validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(
            "S3.customer_key is not 32 bytes in base64",
            hint="make one with: openssl rand -base64 32",
        )
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}
