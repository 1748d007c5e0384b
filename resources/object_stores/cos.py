"""COS: the settings of a bucket of Tencent Cloud Object Storage.

The API itself is in `cos_service`, which needs cos-python-sdk-v5 and is imported only when a
store is opened.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fuploader_dagster.resources.object_stores.cloud import CloudObjectStore
from fuploader_dagster.resources.object_stores.resource import ObjectStoreResource, needing
from fuploader_dagster.storage import ObjectStore

MIB = 1 << 20


class COS(ObjectStoreResource):
    """A bucket of Tencent COS.

    Without keys, COS_SECRET_ID, COS_SECRET_KEY and COS_TOKEN of the environment are used, or the
    machine's role if `instance_role_url` is set.
    """

    SECRETS: ClassVar[frozenset[str]] = frozenset({"secret_key", "token"})

    bucket: str = Field(description="With the account's number: name-1250000000.")
    prefix: str = Field(default="", description="All keys are below it.")
    region: str | None = Field(default=None, description="Such as ap-guangzhou.")
    endpoint: str | None = Field(
        default=None, description="Host below which buckets are, instead of the region's own."
    )
    address: str | None = Field(
        default=None, description="host:port to connect to, instead of the endpoint's."
    )
    scheme: Literal["https", "http"] = Field(
        default="https", description="http is for private endpoints."
    )
    secret_id: str | None = Field(default=None, description="Together with secret_key.")
    secret_key: str | None = Field(
        default=None, repr=False, description="As an environment variable."
    )
    token: str | None = Field(default=None, repr=False, description="Of temporary credentials.")
    instance_role_url: str | None = Field(
        default=None,
        description="http://metadata.tencentyun.com/latest/meta-data/cam/.../<role>",
    )
    verify_tls: bool = Field(default=True, description="Off: any certificate is taken.")
    ca_bundle: str | None = Field(default=None, description="PEM file of an own authority.")
    proxy_url: str | None = Field(
        default=None, repr=False, description="HTTP proxy, with its password if it has one."
    )
    storage_class: str | None = Field(default=None, description="Such as STANDARD_IA or ARCHIVE.")
    encryption: Literal["default", "AES256", "cos/kms"] = Field(
        default="default",
        description="What the service encrypts objects with; default: as the bucket says.",
    )
    kms_key_id: str | None = Field(
        default=None,
        description="The key of the service's key management; its default one if not given.",
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags that every object gets.")
    part_size_bytes: int = Field(
        default=16 * MIB, ge=MIB, le=2048 * MIB, description="At least; larger if need be."
    )
    concurrency: int = Field(default=4, ge=1, le=64, description="Parts sent at once.")
    connect_timeout_seconds: float = Field(
        default=10, gt=0, description="Until a connection stands."
    )
    read_timeout_seconds: float = Field(
        default=60, gt=0, description="Of silence while an answer comes."
    )

    def connect(self) -> ObjectStore:
        with needing("cos-python-sdk-v5", extra="cos"):
            from fuploader_dagster.resources.object_stores.cos_service import (  # noqa: PLC0415
                CosService,
            )
        return CloudObjectStore(
            CosService(self),
            prefix=self.prefix,
            part_size_bytes=self.part_size_bytes,
            concurrency=self.concurrency,
        )

    def describe(self) -> str:
        place = "region" if self.endpoint is None else "endpoint"
        return f"cos://{self.shown('bucket')}/{self.shown('prefix')} at {self.shown(place)}"
