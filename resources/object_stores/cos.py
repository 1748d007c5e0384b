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
    scheme: Literal["https", "http"] = "https"
    secret_id: str | None = None
    secret_key: str | None = Field(default=None, repr=False)
    token: str | None = Field(default=None, repr=False, description="Of temporary credentials.")
    instance_role_url: str | None = Field(
        default=None,
        description="http://metadata.tencentyun.com/latest/meta-data/cam/.../<role>",
    )
    verify_tls: bool = True
    ca_bundle: str | None = Field(default=None, description="PEM file of an own authority.")
    proxy_url: str | None = Field(default=None, repr=False)
    storage_class: str | None = None
    encryption: Literal["default", "AES256", "cos/kms"] = "default"
    kms_key_id: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    part_size_bytes: int = Field(
        default=16 * MIB, ge=MIB, le=2048 * MIB, description="At least; larger if need be."
    )
    concurrency: int = Field(default=4, ge=1, le=64, description="Parts sent at once.")
    connect_timeout_seconds: float = Field(default=10, gt=0)
    read_timeout_seconds: float = Field(default=60, gt=0)

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
