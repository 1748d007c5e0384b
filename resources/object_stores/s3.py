"""S3: the settings of a bucket of Amazon S3 or of anything that speaks like it.

The API itself is in `s3_service`, which needs boto3 and is imported only when a store is opened.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fuploader_dagster.resources.object_stores.cloud import CloudObjectStore
from fuploader_dagster.resources.object_stores.resource import ObjectStoreResource, needing
from fuploader_dagster.storage import ObjectStore

MIB = 1 << 20


class S3(ObjectStoreResource):
    """A bucket of Amazon S3 or of a compatible service.

    Without keys, boto3's own chain is asked: environment, shared profile, container, instance.
    """

    SECRETS: ClassVar[frozenset[str]] = frozenset(
        {"secret_access_key", "session_token", "customer_key"}
    )

    bucket: str = Field(description="The bucket.")
    prefix: str = Field(default="", description="All keys are below it.")
    region: str | None = Field(
        default=None, description="Such as eu-central-1; if not given, boto3's own search decides."
    )
    endpoint_url: str | None = Field(default=None, description="For compatible services.")
    access_key_id: str | None = Field(default=None, description="Together with secret_access_key.")
    secret_access_key: str | None = Field(
        default=None, repr=False, description="As an environment variable."
    )
    session_token: str | None = Field(
        default=None, repr=False, description="Of temporary credentials."
    )
    profile: str | None = Field(default=None, description="A profile of ~/.aws.")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="Whether the bucket is in the path or in the host name."
    )
    verify_tls: bool = Field(default=True, description="Off: any certificate is taken.")
    ca_bundle: str | None = Field(default=None, description="PEM file of an own authority.")
    proxy_url: str | None = Field(
        default=None, repr=False, description="HTTP proxy, with its password if it has one."
    )
    storage_class: str | None = Field(
        default=None, description="Such as STANDARD_IA or GLACIER_IR."
    )
    encryption: Literal["default", "AES256", "aws:kms", "aws:kms:dsse"] = Field(
        default="default",
        description="What the service encrypts objects with; default: as the bucket says.",
    )
    kms_key_id: str | None = Field(
        default=None,
        description="The key of the service's key management; its default one if not given.",
    )
    customer_key: str | None = Field(
        default=None, repr=False, description="SSE-C: 32 bytes in base64. Lost key, lost archives."
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags that every object gets.")
    part_size_bytes: int = Field(
        default=16 * MIB, ge=5 * MIB, le=2048 * MIB, description="At least; larger if need be."
    )
    concurrency: int = Field(default=4, ge=1, le=64, description="Parts sent at once.")
    connect_timeout_seconds: float = Field(
        default=10, gt=0, description="Until a connection stands."
    )
    read_timeout_seconds: float = Field(
        default=60, gt=0, description="Of silence while an answer comes."
    )

    def connect(self) -> ObjectStore:
        with needing("boto3", extra="s3"):
            from fuploader_dagster.resources.object_stores.s3_service import (  # noqa: PLC0415
                S3Service,
            )
        return CloudObjectStore(
            S3Service(self),
            prefix=self.prefix,
            part_size_bytes=self.part_size_bytes,
            concurrency=self.concurrency,
        )

    def describe(self) -> str:
        where = f" at {self.shown('endpoint_url')}" if self.endpoint_url is not None else ""
        return f"s3://{self.shown('bucket')}/{self.shown('prefix')}{where}"
